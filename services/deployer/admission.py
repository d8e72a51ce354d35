"""Which candidate is compared next: a task compares one at a time, and one more waits, the newest.

    evaluated ──▶ queued, in the place of an older one ──no other is compared──▶ shadow
                    └──its turn, judged against a former primary──▶ evaluated again ──▶ queued; it fails ──▶ ends

A candidate that is compared ends by its evidence, never because a newer one came: a test that is broken off whenever
there is news has no level. Alpha is drawn when a candidate enters shadow, not while it waits.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from schemas.adapters import AdapterEvaluated, EvaluationRequested
from schemas.base import utc_now
from schemas.cycles import StepFailed
from schemas.rollouts import Stage
from services.deployer.rollout import BASE, Rollout, ServingState, candidate_of, has_proven
from services.deployer.statistics.levels import level, next_draw
from services.deployer.storage.rollouts import RolloutStore
from services.deployer.transitions import RolloutTransitions
from shared.errors import DependencyUnavailable
from shared.identity import event_id
from shared.kafka.publisher import Publisher


class Admission:
    """Admits candidates. Call its methods with the task locked: `async with rollouts.locked(task)`."""

    def __init__(self, rollouts: RolloutStore, transitions: RolloutTransitions, publisher: Publisher) -> None:
        self._rollouts = rollouts
        self._transitions = transitions
        self._publisher = publisher

    async def admit(self, event: AdapterEvaluated) -> None:
        """Store a verdict: the candidate waits for its turn, in the place of an older one, or ends. Idempotent."""
        if await self._rollouts.with_verdict(event) is None:
            await self._place(event)

    async def next_turn(self, task: str) -> None:
        """Let the candidate that waits enter shadow if no other one is compared.

        If its verdict compares it with a former primary, it is evaluated again first, and ends if no verdict comes. One
        that serves already ends. Raises DependencyUnavailable while vLLM or the artifact store is away: then it waits
        on, until it expires.
        """
        await self._transitions.settle(task)
        waiting, last = await self._rollouts.waiting(task), await self._rollouts.last_entered(task)
        if waiting is None or (last is not None and (last.active or last.control)):
            return
        await self._transitions.watch_flags(task)  # Rollback, turned on or off since: it is compared with who serves.
        now = utc_now()
        if waiting.asked_against and now - waiting.changed_at > timedelta(days=waiting.spec.rollout.max_days):
            reason = f"{waiting.spec.rollout.max_days} days without a verdict: {waiting.reason}"
            await self._save(waiting.turned_away(reason, now, Stage.INCONCLUSIVE))
            await self._transitions.settle(task)
            return
        serving = await self._transitions.serving(task, waiting.spec.base_model)
        if waiting.candidate == serving.primary:
            await self._save(waiting.turned_away("nothing to promote: it serves already", now))
        elif waiting.opponent == serving.primary:
            await self._enter(waiting, serving)
        elif waiting.asked_against != (serving.primary or BASE):
            asked = waiting.asked(serving, now)
            await self._publisher.publish(_request(asked, serving))
            await self._save(asked)
        await self._transitions.settle(task)

    async def drop(self, task: str, reason: str) -> None:
        """End the candidate that waits, because its verdict means nothing any more."""
        if (waiting := await self._rollouts.waiting(task)) is not None:
            await self._save(waiting.turned_away(reason, utc_now(), Stage.INCONCLUSIVE))

    async def fail_evaluation(self, event: StepFailed) -> None:
        """End the candidate that waits if this is the failure of the evaluation that it was asked for. Idempotent."""
        waiting = await self._rollouts.waiting(event.task)
        if waiting is None or not waiting.asked_against or event.failed_event != _request_id(waiting):
            return
        against = "the base model" if waiting.asked_against == BASE else waiting.asked_against
        reason = f"it could not be evaluated again, against {against}: {event.reason}. {event.way_out}"
        await self._save(waiting.turned_away(reason, utc_now(), Stage.INCONCLUSIVE))

    async def _place(self, event: AdapterEvaluated) -> None:
        now = utc_now()
        active, waiting = await self._transitions.active(event.task), await self._rollouts.waiting(event.task)
        if waiting is not None and waiting.candidate == event.adapter:
            await self._save(waiting.judged_again(event, now))
            return
        last = await self._rollouts.last_entered(event.task)
        if last is not None and last.awaits(event):
            return  # It entered without, since the model of its former verdict served again.
        serving = await self._transitions.serving(event.task, event.base_model)
        candidate = candidate_of(event, serving, now)
        if not candidate.waits:
            await self._save(candidate)
            return
        if active is not None and event.data_cutoff < active.data_cutoff:
            reason = f"{active.candidate}, which is compared now, was trained on newer data"
            await self._save(candidate.turned_away(reason, now))
            return
        if waiting is not None and event.data_cutoff < waiting.data_cutoff:
            reason = f"{waiting.candidate}, which waits for its turn, was trained on newer data"
            await self._save(candidate.turned_away(reason, now))
            return
        if active is not None:
            candidate = candidate.until(active.candidate)
        elif last is not None and last.control:
            candidate = candidate.until(f"the control of {last.candidate}")
        older = f"replaced in the queue by the newer {candidate.candidate}"
        replaced = [] if waiting is None else [waiting.turned_away(older, now)]
        await self._save(*replaced, candidate)

    async def _enter(self, waiting: Rollout, serving: ServingState) -> None:
        """Take a candidate into shadow, or end it where vLLM does not serve it, or is away for too long."""
        settings, now = waiting.spec.rollout, utc_now()
        last = await self._rollouts.last_entered(waiting.task)
        draws = await self._rollouts.draws(waiting.task)
        drawn = next_draw(settings.yearly_false_promotion, settings.cycles_per_year, draws, now)
        returned = last.alpha if last is not None and has_proven(last.stage, last.evidence) else 0.0
        alpha = level(settings.yearly_false_promotion, settings.cycles_per_year, drawn, returned, draws, now)
        entering = waiting.into_shadow(serving, drawn, alpha, now)
        try:
            if refusal := await self._transitions.refusal(entering):
                entering = waiting.turned_away(refusal, now)
        except DependencyUnavailable as error:
            turn = waiting.changed_at if last is None else max(waiting.changed_at, last.changed_at)
            if now - turn <= timedelta(days=settings.max_days):
                raise
            reason = f"{settings.max_days} days since its turn in which it could not enter shadow: {error.reason}"
            entering = waiting.turned_away(reason, now, Stage.INCONCLUSIVE)
        await self._save(entering)

    async def _save(self, *changed: Rollout) -> None:
        """Save changes, to be settled, and after them the candidate that is compared once more.

        `rollouts.changed` is compacted to one value a task: whoever reads it as a table must find that candidate, and,
        where there is none, who serves by now, which may have changed since a candidate was queued.
        """
        task, last = changed[0].task, changed[-1]
        serving = await self._transitions.serving(task, last.spec.base_model)
        changed = tuple(r if r.entered else r.with_serving(serving.primary, serving.previous) for r in changed)
        stays = await self._transitions.staying(task, f"the newer {last.candidate} is {last.stage.value}")
        # A candidate stays for no news of its own. Where the database was away, so that the lock was lost, another
        # process may have let it enter meanwhile: that is saved, and what is saved here changes nothing.
        own = {rollout.rollout_id for rollout in changed}
        await self._rollouts.save(*changed, *(rollout for rollout in stays if rollout.rollout_id not in own))


def _request_id(asked: Rollout) -> UUID:
    return event_id("evaluate again", asked.rollout_id, asked.asked_version)


def _request(asked: Rollout, serving: ServingState) -> EvaluationRequested:
    return EvaluationRequested(
        event_id=_request_id(asked),
        occurred_at=asked.changed_at,
        task=asked.task,
        task_revision=asked.task_revision,
        cycle_id=asked.cycle_id,
        adapter=asked.candidate,
        uri=asked.candidate_uri,
        base_model=asked.spec.base_model,
        dataset_id=asked.dataset_id,
        dataset_uri=asked.dataset_uri,
        data_cutoff=asked.data_cutoff,
        against=serving.primary,
        spec=asked.spec,
    )
