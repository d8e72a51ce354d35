"""Kafka handlers of the deployer, its ticks, and its background work. `workers.py` says when a task is ticked.

consumes  adapters.evaluated · steps.failed · shadow.compared · corrections.submitted · requests.observed ·
          feedback.given · subjects.forgotten
produces  rollouts.changed and labels.requested, through `RolloutTransitions` · evaluations.requested, by `Admission`
"""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from schemas.adapters import AdapterEvaluated
from schemas.base import Variant
from schemas.catalog import topic_of
from schemas.cycles import StepFailed
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import FeedbackGiven, RequestObserved, SubjectForgotten
from schemas.rollouts import ShadowCompared, Stage
from schemas.tasks import TaskChanged
from services.deployer.admission import Admission
from services.deployer.rollout import Rollout
from services.deployer.settings import DeployerSettings
from services.deployer.statistics.canary import is_negative, is_wrong, observation
from services.deployer.statistics.guards import Guard
from services.deployer.storage.ledger import LedgerStore
from services.deployer.storage.rollouts import RolloutStore
from services.deployer.tickets import Label, label_outcome
from services.deployer.transitions import RolloutTransitions
from services.deployer.wakes import Wakes
from shared.errors import DependencyUnavailable
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.retention import drop_expired_forever

logger = logging.getLogger(__name__)
_MAX_PAIRS, _MAX_CORRECTIONS, _MAX_OBSERVATIONS = 200, 100, 500
"""Handled at once."""
_ARMS = {Variant.CANARY, Variant.PRIMARY, Variant.BASE}
"""Whose requests are compared; after a promotion also the control's, whom the previous adapter serves."""
_CLOCKS_DIFFER = timedelta(seconds=10)
"""A gateway's clock may be so far behind without a word."""
_READ_SECONDS = 10.0
"""After a start no candidate is decided about before the tasks are read, and so long a person's command waits."""


class Handlers:
    def __init__(
        self,
        settings: DeployerSettings,
        rollouts: RolloutStore,
        ledger: LedgerStore,
        transitions: RolloutTransitions,
        admission: Admission,
    ) -> None:
        self._settings = settings
        self._rollouts = rollouts
        self._ledger = ledger
        self._transitions = transitions
        self._admission = admission
        self.tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)
        self.wakes = Wakes()
        """Tasks that are to be ticked soon, or at once."""
        self.trouble: dict[str, str] = {}
        """What keeps a task's last tick from its end, by task."""
        self._early: set[str] = set()
        """Rollouts of which it was said that a clock may be behind."""

    def subscribe(self, consumers: Consumers) -> None:
        consumers.on(AdapterEvaluated, self.on_evaluated)
        consumers.on(StepFailed, self.on_step_failed)
        consumers.on_batch(ShadowCompared, self.on_compared, BatchOptions(_MAX_PAIRS))
        consumers.on_batch(CorrectionSubmitted, self.on_corrections, BatchOptions(_MAX_CORRECTIONS))
        consumers.on_batch(RequestObserved, self.on_observed, BatchOptions(_MAX_OBSERVATIONS))
        consumers.on(FeedbackGiven, self.on_feedback)
        self.tasks = consumers.table(TaskChanged, self.on_task)

    async def on_task(self, event: TaskChanged) -> None:
        """Have a candidate checked whose task has changed. Whether a person must approve holds for it at once."""
        self._transitions.approval[event.task] = event.spec.rollout.approval
        self.wakes.note(event.task)

    async def on_evaluated(self, event: AdapterEvaluated) -> None:
        """Take a candidate into shadow, or let it wait for its turn, or record that the offline gates stopped it.

        A model of its own is served by name and replaces no adapter: no rollout moves users to it.
        """
        if event.kind == "model":
            logger.info("the model %s has its verdict (%s): no rollout follows", event.adapter, event.verdict)
            return
        async with self._rollouts.locked(event.task):
            await self._admission.admit(event)
            async with self._later_if_away(event.task):
                await self.end_outdated(event.task)
                await self._admission.next_turn(event.task)

    async def on_step_failed(self, event: StepFailed) -> None:
        """End a candidate that waits for a verdict that does not come, so that the next one need not wait for it."""
        async with self._rollouts.locked(event.task):
            await self._admission.fail_evaluation(event)
            async with self._later_if_away(event.task):
                await self.end_outdated(event.task)  # A move may wait that is not to be made any more.
                await self._transitions.settle(event.task)

    async def on_compared(self, deliveries: list[Delivery[ShadowCompared]]) -> None:
        """Add pairs to the ledger; those that differ may become tickets that people are asked about.

        A subject's first one that differs bets. A task's are in one partition, in the order in which shadow published
        them, which does not depend on how long the candidate took; those of one batch are added in the order of their
        requests. Pairs that agree, the most by far, decide nothing that could not wait for the next tick.
        """
        by_rollout: dict[tuple[str, str], list[ShadowCompared]] = defaultdict(list)
        for delivery in deliveries:
            by_rollout[delivery.event.task, delivery.event.rollout_id].append(delivery.event)
        for (task, rollout_id), pairs in by_rollout.items():
            pairs.sort(key=lambda pair: pair.logged_at)
            async with self._rollouts.locked(task):
                found = await self._rollouts.get(rollout_id)
                if found is not None and found.task == task and (rollout := found.standing).compared:
                    # A pair that is stored already, from an earlier delivery, does not change its sides.
                    candidate_first = [bool(secrets.randbelow(2)) for _ in pairs]
                    await self._ledger.add_pairs(rollout, pairs, candidate_first)
                    if not all(pair.agree for pair in pairs):
                        await self._advance(task)

    async def on_corrections(self, deliveries: list[Delivery[CorrectionSubmitted]]) -> None:
        """Add answers to tickets, and decide once about each task that has any.

        No other correction is evidence: those exist because production was wrong. An answer in the audit, which chance
        chose, counts for the canary's guard.
        """
        by_task: dict[str, list[CorrectionSubmitted]] = defaultdict(list)
        for event in (delivery.event for delivery in deliveries):
            if event.purpose is Purpose.AUDIT:
                rollouts = [r for r in await self._rollouts.counting([event.task]) if is_wrong(event, r.spec.kind)]
                await self._complain(
                    rollouts, Guard.CORRECTIONS, event.prediction_id, event.user_hash, event.happened_at
                )
            if event.ticket_id is not None and event.purpose is Purpose.DISCORDANT_PAIR:
                by_task[event.task].append(event)
        for task, answers in by_task.items():
            async with self._rollouts.locked(task):
                added = [await self._add_label(answer, str(answer.ticket_id)) for answer in answers]
                if any(added):
                    await self._advance(task)

    async def _add_label(self, event: CorrectionSubmitted, ticket_id: str) -> bool:
        """Store an answer to a ticket; return False, with nothing stored, if it counts for nothing any more."""
        ticket = await self._ledger.ticket(ticket_id)
        found = await self._rollouts.get(ticket.rollout_id) if ticket is not None else None
        if ticket is None or found is None or found.task != event.task:
            logger.warning("%s: label skipped: ticket %s is unknown or void", event.task, ticket_id)
            return False
        rollout = found.standing
        if not rollout.compared or ticket.fresh is not rollout.control:
            logger.info("%s: label skipped: the rollout of ticket %s has ended", event.task, ticket_id)
            return False
        outcome = label_outcome(
            rollout.spec.kind, event.label, event.preference, ticket.pair, rollout.spec.rollout.severity
        )
        await self._ledger.add_label(
            Label(event.correction_id, ticket_id, event.request_id, event.reviewer, outcome, event.occurred_at)
        )
        return True

    async def on_observed(self, deliveries: list[Delivery[RequestObserved]]) -> None:
        """Count requests for the canary's guards, and whom its present step has served; in shadow, the primary's."""
        by_task: dict[str, list[Delivery[RequestObserved]]] = defaultdict(list)
        for delivery in deliveries:
            by_task[delivery.event.task].append(delivery)
        for rollout in await self._rollouts.counting(by_task):
            self._check_clocks(rollout, [delivery.event for delivery in by_task[rollout.task]])
            variants = _ARMS | {Variant.ROLLBACK} if rollout.control else _ARMS
            observations = [
                observation(d, rollout.candidate, rollout.primary) for d in by_task[rollout.task]
                if d.event.occurred_at >= rollout.stage_since and d.event.variant in variants
            ]  # fmt: skip
            if observations:
                await self._ledger.add_observations(rollout, observations)
                if any(o.canary for o in observations):
                    await self._look_at_canary(rollout)

    def _check_clocks(self, rollout: Rollout, events: Sequence[RequestObserved]) -> None:
        """Say once that a gateway's clock is behind: for as long as it is, guards see nothing of a canary that begins.

        Only what a candidate answered tells it, since it serves nobody before its stage.
        """
        if rollout.stage is Stage.SHADOW or rollout.rollout_id in self._early:
            return
        variant = Variant.CANARY if rollout.stage is Stage.CANARY else Variant.PRIMARY
        latest = rollout.stage_since - _CLOCKS_DIFFER
        early = [
            event.occurred_at for event in events
            if event.variant is variant and event.adapter == rollout.candidate and event.occurred_at < latest
        ]  # fmt: skip
        if not early:
            return
        self._early.add(rollout.rollout_id)
        logger.warning(
            "%s: %s answered %d requests up to %.0f s before it could: they count nowhere. "
            "Is a gateway's clock behind? Then guards see what it answers so much later. Or had a hand turned it on?",
            rollout.task, rollout.candidate, len(early), (rollout.stage_since - min(early)).total_seconds(),
        )  # fmt: skip

    async def _look_at_canary(self, rollout: Rollout) -> None:
        """Have its task ticked: at once if its guards end it, soon if a canary may have served all whom it needs."""
        if await self._transitions.is_failing(rollout):
            self.wakes.wake(rollout.task)
        elif rollout.stage is Stage.CANARY:
            self.wakes.note(rollout.task)

    async def on_feedback(self, event: FeedbackGiven) -> None:
        """Count a complaint for the canary's guard."""
        if is_negative(event):
            rollouts = await self._rollouts.counting([event.task])
            await self._complain(rollouts, Guard.FEEDBACK, event.prediction_id, event.user_hash, event.occurred_at)

    async def _complain(
        self, rollouts: Sequence[Rollout], guard: Guard, prediction_id: str, user_hash: str | None, at: datetime
    ) -> None:
        for rollout in rollouts:
            if rollout.may_serve and at >= rollout.stage_since:
                await self._ledger.add_complaint(rollout, guard, prediction_id, user_hash, at)
                await self._look_at_canary(rollout)

    async def on_forgotten(self, event: SubjectForgotten) -> None:
        """Delete a person's texts and hash and void their open tickets; what was bet remains as numbers."""
        async with self._rollouts.locked(event.task):
            await self._ledger.forget(event)
        self.wakes.note(event.task)  # A void ticket makes room for another.

    async def read_tasks(self) -> None:
        """Background, when the broker answers: read all tasks, then have each ticked, whose decisions wait."""
        await self.tasks.read_to_end(self._settings)
        for task in await self._rollouts.tasks():
            self.wakes.wake(task)

    async def wait_for_tasks(self) -> None:
        """Return once the tasks are read. Raises DependencyUnavailable if that takes too long."""
        await self.tasks.latest("", _READ_SECONDS)

    async def publish_again(self) -> None:
        """Background, when the broker answers: publish each task's state again, for a broker that has lost it.

        The event is the same as before, by its id; whoever has it is not told anything new.
        """
        for task in await self._rollouts.tasks():
            async with self._rollouts.locked(task):
                await self._transitions.publish_again(task)

    async def expire_forever(self) -> None:
        """Background: delete the texts of ended rollouts when retention deletes them from the lake."""
        await drop_expired_forever(self.tasks, self.expire)

    async def expire(self, task: str, before: datetime) -> None:
        """Delete texts logged before a moment, except those that people may still be asked about."""
        async with self._rollouts.locked(task):
            await self._ledger.expire(task, before, await self._rollouts.counting([task]))

    async def _advance(self, task: str) -> None:
        """Decide about a candidate of which something new is stored, and have the next one let in if it has ended."""
        async with self._later_if_away(task):
            await self.end_outdated(task)
            if await self._transitions.advance(task) is None:
                await self._transitions.watch_control(task)
                self.wakes.note(task)

    async def end_outdated(self, task: str) -> None:
        """End the candidates that were made for another prompt, labels or base model than the task has by now.

        Call it with the task locked, before every decision, a person's too: news of a candidate and of its task
        are in different topics. Raises DependencyUnavailable where, after a start, the tasks are not read yet.
        """
        if (changed := await self.tasks.latest(task, 0.0)) is None:  # Guards and hands need the lock meanwhile.
            return
        active = await self._transitions.active(task)
        if active is not None and active.is_invalidated_by(changed):
            reason = "the task's prompt, labels or base model changed, so its pairs no longer count"
            await self._transitions.end(task, Stage.INCONCLUSIVE, reason)
        waiting = await self._rollouts.waiting(task)
        if waiting is not None and waiting.is_invalidated_by(changed):
            await self._admission.drop(task, "the task's prompt, labels or base model changed since it was trained")

    @asynccontextmanager
    async def _later_if_away(self, task: str) -> AsyncIterator[None]:
        """Leave a decision to the task's next tick where something is away: what it is about is stored already.

        So what one task waits for holds up no other task's records of the same partition.
        """
        try:
            yield
        except DependencyUnavailable as error:
            self.report(task, error, "decided at its next tick")
            self.wakes.note(task)

    def report(self, task: str, error: DependencyUnavailable, then: str) -> None:
        """Note a task's trouble for whoever asks, and log it once for as long as it stays the same.

        While the tasks are still being read after a start it is none that every decision waits for them.
        """
        if self.tasks.is_starting:
            return
        trouble = f"{error.reason}. {error.way_out}" if error.way_out else error.reason
        if self.trouble.get(task) != trouble:
            logger.warning("%s: %s: %s", task, then, trouble)
        self.trouble[task] = trouble

    async def tick(self, task: str, *, reads_flags: bool = True) -> None:
        """Finish what a crash left unsettled, decide about the candidate, and look for a hand on the flags.

        `reads_flags`: False where nothing says that one was changed. Before a move to more users they are read anyway.
        """
        async with self._rollouts.locked(task):
            try:
                await self.end_outdated(task)
            except DependencyUnavailable:
                # What needs no news of the task: an end that is stored is carried out, and guards end a canary, or take
                # a promotion back, and a hand on a flag pauses.
                await self._transitions.end_if_harmful(task)
                await self._transitions.watch_control(task)
                if not any(rollout.adds_traffic for rollout in await self._rollouts.unsettled(task)):
                    await self._transitions.settle(task)
                if reads_flags:
                    await self._transitions.watch_flags(task)
                raise
            try:
                await self._transitions.advance(task)
            except DependencyUnavailable:
                await self._transitions.watch_control(task)  # Its guards wait for no event and no other candidate.
                raise
            if reads_flags:
                await self._transitions.watch_flags(task)
            await self._transitions.watch_control(task)
            await self._admission.next_turn(task)
