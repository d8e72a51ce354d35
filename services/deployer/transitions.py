"""Changes of a rollout: save the change, set the flags, publish the event, in this order.

A crash between any two steps is harmless. The change is first saved as unsettled, and `settle`, which runs before every
decision and at every tick, repeats the flags (idempotent) and the event (same id) of what is unsettled.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from schemas.base import utc_now
from schemas.conversation import Call
from schemas.labels import LabelRequested, Purpose
from schemas.rollouts import Stage
from services.deployer.clients import AdapterServer, ArtifactMissing, FlagAdmin
from services.deployer.domain import Decision, DrawnTicket, decide
from services.deployer.flags import apply_flags, flag_name, read_flags
from services.deployer.rollout import Rollout, ServingState, serving_after
from services.deployer.storage.ledger import LedgerStore
from services.deployer.storage.rollouts import RolloutStore
from shared.errors import InvalidMessage
from shared.identity import event_id
from shared.kafka.publisher import EventPublisher

_PRIORITY = 2.0
"""Above every low-confidence question (at most 1): a candidate waits for these answers."""
_MISSING_ARTIFACT_TIMEOUT = timedelta(minutes=15)
"""An adapter is stored before its events are published. One that is missing for so long was deleted; waiting for it any
longer would block all later candidates of the task."""

logger = logging.getLogger(__name__)


class RolloutTransitions:
    """Moves the rollouts of all tasks. Call its methods with the task locked: `async with rollouts.locked(task)`."""

    def __init__(
        self,
        rollouts: RolloutStore,
        ledger: LedgerStore,
        admin: FlagAdmin,
        adapters: AdapterServer,
        publisher: EventPublisher,
        max_open_tickets: int,
    ) -> None:
        self._rollouts = rollouts
        self._ledger = ledger
        self._admin = admin
        self._adapters = adapters
        self._publisher = publisher
        self._max_open_tickets = max_open_tickets
        self._logged_differences: dict[str, tuple[str, ...]] = {}
        self._logged_waits: dict[str, str] = {}

    async def settle(self, task: str) -> None:
        """Finish every change of the task whose flags or event may not have been applied and published."""
        for rollout in await self._rollouts.unsettled(task):
            current = rollout
            if rollout.moves_flags:
                refusal = await self._refusal(rollout, rollout.changed_at)
                if refusal:
                    current = rollout.with_refusal(refusal, utc_now())
                    await self._rollouts.save(current)
                await apply_flags(self._admin, current)
            await self._publisher.publish(current.event())
            await self._rollouts.settle(current)
            logger.info("%s: %s is %s: %s", task, current.candidate, current.stage.value, current.reason)

    async def serving(self, task: str, base_model: str) -> ServingState:
        """Return who serves the task now. A task without any rollout yet is read from its primary flag."""
        if (last := await self._rollouts.last_entered(task)) is not None:
            return serving_after(last, base_model)
        state = await self._admin.read(flag_name(task, "primary"))
        payload = (state.payload or {}) if state is not None and state.enabled else {}
        return ServingState(payload.get("adapter"), payload.get("previous"))

    async def start(self, candidate: Rollout, evaluated_at: datetime) -> None:
        """Start a new candidate's rollout, or record that the offline gates stopped it. Idempotent.

        A task has one active candidate. A newer one that passed supersedes it. A newer one that failed, or that vLLM
        does not serve, leaves it active; its state is then published again, because `rollouts.changed` is compacted
        to one value per task.
        """
        active = await self._active(candidate.task)
        if candidate.entered and (refusal := await self._refusal(candidate, evaluated_at)):
            candidate = candidate.rejected_before_entry(refusal)
        if active is None:
            await self._rollouts.save(candidate)
        elif active.rollout_id != candidate.rollout_id and await self._rollouts.get(candidate.rollout_id) is None:
            evidence = (await self._ledger.load(active.rollout_id)).evidence(active.alpha)
            if candidate.entered:
                reason = f"superseded by {candidate.candidate}, which passed the offline gates"
                await self._rollouts.save(active.with_stage(Stage.REJECTED, reason, evidence, utc_now()), candidate)
            else:
                reason = f"stays in {active.stage.value}: the newer {candidate.candidate} was rejected before shadow"
                stays = active.with_stage(active.stage, reason, evidence, utc_now(), moves_flags=False)
                await self._rollouts.save(candidate, stays)
        await self.settle(candidate.task)

    async def advance(self, task: str) -> None:
        """Decide about the task's active candidate, if it has one, and act on the decision."""
        await self.settle(task)
        rollout = await self._active(task)
        if rollout is None:
            return
        ledger = await self._ledger.load(rollout.rollout_id)
        decision = decide(rollout.stage, ledger, rollout.alpha, rollout.spec.rollout)
        if decision is None:
            await self._ask_people(rollout)
            return
        if await self._waits_for_operator(rollout, decision):
            return
        evidence = ledger.evidence(rollout.alpha)
        if decision.stage is Stage.PROMOTED:
            changed = rollout.with_promotion(decision.reason, evidence, utc_now())
        else:
            changed = rollout.with_stage(decision.stage, decision.reason, evidence, utc_now())
        await self._rollouts.save(changed)
        await self.advance(task)  # Settles it, and checks whether the evidence already suffices for the next stage.

    async def reject(self, task: str, reason: str) -> None:
        """Reject the task's active candidate for a reason outside of the test."""
        await self.settle(task)
        if (rollout := await self._active(task)) is not None:
            evidence = (await self._ledger.load(rollout.rollout_id)).evidence(rollout.alpha)
            await self._rollouts.save(rollout.with_stage(Stage.REJECTED, reason, evidence, utc_now()))
            await self.settle(task)

    async def watch_flags(self, task: str) -> None:
        """Look for flags that an operator changed. They are not changed back; a rollback, or its end, is published."""
        last = await self._rollouts.last_entered(task)
        if last is None or not last.settled:
            return
        current = await read_flags(self._admin, task)
        differences = current.differences(last)
        if differences != self._logged_differences.get(task, ()):
            self._logged_differences[task] = differences
            logger.warning("%s: flags changed by an operator: %s", task, "; ".join(differences) or "none any more")
        if last.stage is Stage.PROMOTED and current.rolled_back:
            reason = f"an operator turned rollback on: {last.previous or 'the base model'} serves again"
            rolled_back = last.with_stage(Stage.ROLLED_BACK, reason, last.evidence, utc_now(), moves_flags=False)
            await self._rollouts.save(rolled_back.with_serving(last.previous, last.candidate))
        elif last.stage is Stage.ROLLED_BACK and not current.rolled_back:
            reason = f"an operator turned rollback off: {last.candidate} serves again"
            restored = last.with_stage(Stage.PROMOTED, reason, last.evidence, utc_now(), moves_flags=False)
            await self._rollouts.save(restored.with_serving(last.candidate, last.primary))
        await self.settle(task)

    async def _ask_people(self, rollout: Rollout) -> None:
        """Publish questions about the next pairs that differ, a few at a time, in shadow and canary alike."""
        await self._ledger.draw_tickets(rollout, self._max_open_tickets)
        for ticket in await self._ledger.unpublished_tickets(rollout.rollout_id):
            if ticket.call is not None:
                await self._publisher.publish(_question(rollout, ticket, ticket.call, utc_now()))
                await self._ledger.set_published(ticket.ticket_id)

    async def _refusal(self, rollout: Rollout, since: datetime) -> str:
        """Return why vLLM does not serve the candidate, or "". Checked before every move towards users.

        `since`: when the move was due. Raises DependencyUnavailable while the move may still become possible.
        """
        if rollout.stage in (Stage.REJECTED, Stage.ROLLED_BACK):
            return ""
        try:
            await self._adapters.serve(rollout.candidate, rollout.candidate_uri)
        except ArtifactMissing as error:
            if utc_now() - since < _MISSING_ARTIFACT_TIMEOUT:
                raise
            return f"{rollout.candidate} is not in the artifact store any more: {error.reason}. Was it deleted?"
        except InvalidMessage as error:
            return (
                f"vLLM does not serve {rollout.candidate}: {error.reason}. Does every replica see the artifact folder, "
                "and is the adapter's rank within --max-lora-rank?"
            )
        return ""

    async def _active(self, task: str) -> Rollout | None:
        last = await self._rollouts.last_entered(task)
        return last if last is not None and last.active else None

    async def _waits_for_operator(self, rollout: Rollout, decision: Decision) -> bool:
        """Return True if an operator's flags hold back a move to more users. A rejection never waits."""
        if decision.stage is Stage.REJECTED:
            return False
        current = await read_flags(self._admin, rollout.task)
        primary_on = current.primary is not None and current.primary.enabled
        if primary_on and not current.rolled_back:
            return False
        wait = f"{rollout.candidate} has earned {decision.stage.value}"
        if self._logged_waits.get(rollout.task) != wait:
            self._logged_waits[rollout.task] = wait
            logger.warning("%s: %s but waits: an operator turned primary off or rollback on", rollout.task, wait)
        return True


def _question(rollout: Rollout, ticket: DrawnTicket, call: Call, now: datetime) -> LabelRequested:
    """Return the blind question about a pair. Its id is the same when published again; a second person's differs."""
    request = ticket.ticket_id if ticket.labels == 0 else f"{ticket.ticket_id}.{ticket.labels + 1}"
    return LabelRequested(
        event_id=event_id("ask", request),
        occurred_at=now,
        task=rollout.task,
        task_revision=rollout.task_revision,
        cycle_id=rollout.cycle_id,
        request_id=request,
        prediction_id=ticket.prediction_id,
        purpose=Purpose.DISCORDANT_PAIR,
        call=call,
        answers=ticket.pair.sides,
        labels=rollout.spec.labels,
        priority=_PRIORITY,
        ticket_id=ticket.ticket_id,
        user_hash=ticket.user_hash,
        predicted_at=ticket.logged_at,
    )
