"""Kafka handlers of the deployer, and its background work.

consumes  adapters.evaluated · shadow.compared · corrections.submitted · requests.observed · subjects.forgotten
produces  rollouts.changed and labels.requested, through `RolloutTransitions`
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict

from schemas.adapters import AdapterEvaluated
from schemas.base import Variant, utc_now
from schemas.catalog import topic_of
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import RequestObserved, SubjectForgotten
from schemas.rollouts import ShadowCompared, Stage
from schemas.tasks import TaskChanged
from services.deployer.domain import Observation, label_outcome
from services.deployer.rollout import Rollout, new_rollout
from services.deployer.settings import DeployerSettings
from services.deployer.storage.ledger import LedgerStore
from services.deployer.storage.rollouts import RolloutStore
from services.deployer.transitions import RolloutTransitions
from shared.errors import DependencyUnavailable
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.retention import drop_expired_forever

logger = logging.getLogger(__name__)


class Handlers:
    def __init__(
        self,
        settings: DeployerSettings,
        rollouts: RolloutStore,
        ledger: LedgerStore,
        transitions: RolloutTransitions,
    ) -> None:
        self._settings = settings
        self._rollouts = rollouts
        self._ledger = ledger
        self._transitions = transitions
        self._tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)

    def subscribe(self, consumers: Consumers) -> None:
        consumers.on(AdapterEvaluated, self.on_evaluated)
        consumers.on_batch(ShadowCompared, self.on_compared, BatchOptions(self._settings.deployer_pairs_batch))
        consumers.on(CorrectionSubmitted, self.on_correction)
        consumers.on_batch(
            RequestObserved, self.on_observed, BatchOptions(self._settings.deployer_observations_batch)
        )  # fmt: skip
        consumers.on(SubjectForgotten, self.on_forgotten)
        self._tasks = consumers.table(TaskChanged)

    async def on_evaluated(self, event: AdapterEvaluated) -> None:
        """Start a candidate's rollout in shadow, or reject it by the offline gates."""
        async with self._rollouts.locked(event.task):
            await self._transitions.settle(event.task)
            last = await self._rollouts.last_entered(event.task)
            serving = await self._transitions.serving(event.task, event.base_model)
            await self._transitions.start(new_rollout(event, last, serving, utc_now()), event.occurred_at)

    async def on_compared(self, deliveries: list[Delivery[ShadowCompared]]) -> None:
        """Add pairs to the ledger; those that differ may become tickets that people are asked about."""
        by_rollout: dict[tuple[str, str], list[ShadowCompared]] = defaultdict(list)
        for delivery in deliveries:
            by_rollout[delivery.event.task, delivery.event.rollout_id].append(delivery.event)
        for (task, rollout_id), pairs in by_rollout.items():
            async with self._rollouts.locked(task):
                rollout = await self._rollouts.get(rollout_id)
                if rollout is not None and rollout.task == task and rollout.active:
                    # A pair that is stored already, from an earlier delivery, does not change its sides.
                    candidate_first = [bool(secrets.randbelow(2)) for _ in pairs]
                    await self._ledger.add_pairs(rollout, pairs, candidate_first)
                    await self._transitions.advance(task)

    async def on_correction(self, event: CorrectionSubmitted) -> None:
        """Add an answer to a ticket. No other correction is evidence: those exist because production was wrong."""
        if event.ticket_id is None or event.purpose is not Purpose.DISCORDANT_PAIR:
            return
        async with self._rollouts.locked(event.task):
            ticket = await self._ledger.ticket(event.ticket_id)
            rollout = await self._rollouts.get(ticket.rollout_id) if ticket is not None else None
            if ticket is None or rollout is None or rollout.task != event.task:
                logger.warning("%s: label skipped: ticket %s is unknown or void", event.task, event.ticket_id)
                return
            outcome = label_outcome(rollout.spec.kind, event.label, event.preference, ticket.pair)
            await self._ledger.add_label(event.correction_id, ticket.ticket_id, event.reviewer, outcome)
            await self._transitions.advance(rollout.task)

    async def on_observed(self, deliveries: list[Delivery[RequestObserved]]) -> None:
        """Count requests for the canary's guard and for its minimum number of requests."""
        canaries = {r.task: r for r in await self._rollouts.active() if r.stage is Stage.CANARY}
        for task, rollout in canaries.items():
            observations = [
                _observation(d.event, rollout) for d in deliveries
                if d.event.task == task and d.event.occurred_at >= rollout.changed_at
                and d.event.variant in (Variant.CANARY, Variant.PRIMARY, Variant.BASE)
            ]  # fmt: skip
            if observations:
                await self._ledger.add_observations(rollout, observations)

    async def on_forgotten(self, event: SubjectForgotten) -> None:
        """Delete a person's texts and hash and void their open tickets; what was bet remains as numbers."""
        async with self._rollouts.locked(event.task):
            await self._ledger.forget(event)

    async def expire_forever(self) -> None:
        """Background: delete the texts of ended rollouts when retention deletes them from the lake."""
        await drop_expired_forever(self._tasks, self._ledger.expire)

    async def tick_forever(self) -> None:
        """Background: tick every task, forever."""
        while True:
            for task in await self._rollouts.tasks():
                try:
                    await self.tick(task)
                except DependencyUnavailable as error:
                    logger.warning("%s: retrying in %g s: %s", task, self._settings.deployer_tick_seconds, error)
            await asyncio.sleep(self._settings.deployer_tick_seconds)

    async def tick(self, task: str) -> None:
        """Finish what a crash left unsettled, decide about the candidate, and watch the flags."""
        async with self._rollouts.locked(task):
            last = await self._rollouts.last_entered(task)
            changed = self._tasks.get(task)
            if last is not None and last.active and changed is not None and last.is_invalidated_by(changed):
                await self._transitions.reject(
                    task, "the task's prompt, labels or base model changed, so its pairs no longer count"
                )
            await self._transitions.advance(task)
            await self._transitions.watch_flags(task)


def _observation(event: RequestObserved, rollout: Rollout) -> Observation:
    in_canary = event.variant is Variant.CANARY and event.adapter == rollout.candidate
    failed = event.status >= 500 or event.status == 404  # 404: a replica that does not serve the adapter.
    return Observation(event.prediction_id, event.user_hash, in_canary, failed, event.occurred_at)
