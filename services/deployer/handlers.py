"""Events in: what candidates are worth. Out: where they stand, and questions about pairs that differ."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime

from schemas.adapters import AdapterEvaluated
from schemas.base import Variant, utc_now
from schemas.catalog import topic_of
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import RequestObserved, SubjectForgotten
from schemas.rollouts import ShadowCompared, Stage
from schemas.tasks import TaskChanged
from services.deployer.domain import label_outcome
from services.deployer.rollout import Rollout, begun
from services.deployer.settings import DeployerSettings
from services.deployer.storage import Observation, Storage
from services.deployer.transitions import Moves
from shared.errors import DependencyUnavailable
from shared.kafka.consumers import Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.retention import drop_expired_forever

logger = logging.getLogger(__name__)


class Handlers:
    def __init__(
        self,
        settings: DeployerSettings,
        storage: Storage,
        moves: Moves,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._moves = moves
        self._now = now
        self._tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        consumers.on(AdapterEvaluated, self.on_evaluated)
        consumers.on_batch(ShadowCompared, self.on_compared, max_records=self._settings.deployer_pairs_batch)
        consumers.on(CorrectionSubmitted, self.on_correction)
        consumers.on_batch(
            RequestObserved, self.on_observed, max_records=self._settings.deployer_observations_batch
        )  # fmt: skip
        consumers.on(SubjectForgotten, self.on_forgotten)
        self._tasks = consumers.table(TaskChanged)

    async def on_evaluated(self, event: AdapterEvaluated) -> None:
        """A candidate enters shadow, or ends at the offline gates."""
        async with self._storage.locked(event.task):
            await self._moves.settle(event.task)
            last = await self._storage.last_entered(event.task)
            serving = await self._moves.serving(event.task, event.base_model)
            await self._moves.begin(begun(event, last, serving, self._now()), event.occurred_at)

    async def on_compared(self, deliveries: list[Delivery[ShadowCompared]]) -> None:
        """Pairs into the ledger; those that differ become tickets that people are asked about."""
        by_rollout: dict[tuple[str, str], list[ShadowCompared]] = defaultdict(list)
        for delivery in deliveries:
            by_rollout[delivery.event.task, delivery.event.rollout_id].append(delivery.event)
        for (task, rollout_id), pairs in by_rollout.items():
            async with self._storage.locked(task):
                rollout = await self._storage.rollout(rollout_id)
                if rollout is not None and rollout.task == task and rollout.active:
                    sides = [bool(secrets.randbelow(2)) for _ in pairs]  # The first delivery's toss is kept.
                    await self._storage.add_pairs(rollout, pairs, sides)
                    await self._moves.advance(task)

    async def on_correction(self, event: CorrectionSubmitted) -> None:
        """An answer to one of our tickets. No other correction counts: they exist because production was wrong."""
        if event.ticket_id is None or event.purpose is not Purpose.DISCORDANT_PAIR:
            return
        async with self._storage.locked(event.task):
            ticket = await self._storage.ticket(event.ticket_id)
            rollout = await self._storage.rollout(ticket.rollout_id) if ticket is not None else None
            if ticket is None or rollout is None or rollout.task != event.task:
                logger.warning("%s: a label for %s, which is unknown or void", event.task, event.ticket_id)
                return
            outcome = label_outcome(rollout.spec.kind, event.label, event.preference, ticket.pair)
            await self._storage.add_label(event.correction_id, ticket.ticket_id, event.reviewer, outcome)
            await self._moves.advance(rollout.task)

    async def on_observed(self, deliveries: list[Delivery[RequestObserved]]) -> None:
        """Counts for the canary's guard and for its least number of requests."""
        canaries = {r.task: r for r in await self._storage.active() if r.stage is Stage.CANARY}
        for task, rollout in canaries.items():
            seen = [
                _observation(d.event, rollout) for d in deliveries
                if d.event.task == task and d.event.occurred_at >= rollout.changed_at
                and d.event.variant in (Variant.CANARY, Variant.PRIMARY, Variant.BASE)
            ]  # fmt: skip
            if seen:
                await self._storage.observe(rollout, seen)

    async def on_forgotten(self, event: SubjectForgotten) -> None:
        """No text and no hash of a person stays; what was bet stays, and their open tickets are void."""
        async with self._storage.locked(event.task):
            await self._storage.forget(event)

    async def expire_forever(self) -> None:
        """Background: what an ended rollout compared goes when it leaves the lake."""
        await drop_expired_forever(self._tasks, self._storage.expire)

    async def tick_forever(self) -> None:
        """Background: finish what a crash left, decide again, watch the flags."""
        while True:
            for task in await self._storage.tasks():
                try:
                    await self.tick(task)
                except DependencyUnavailable as error:
                    logger.warning("%s: looked at again later: %s", task, error)
            await asyncio.sleep(self._settings.deployer_tick_seconds)

    async def tick(self, task: str) -> None:
        """One look at a task."""
        async with self._storage.locked(task):
            last = await self._storage.last_entered(task)
            changed = self._tasks.get(task)
            if last is not None and last.active and changed is not None and last.void_by(changed):
                await self._moves.reject(task, "the task's prompt, labels or base model changed: no pair counts")
            await self._moves.advance(task)
            await self._moves.watch(task)


def _observation(event: RequestObserved, rollout: Rollout) -> Observation:
    canary = event.variant is Variant.CANARY and event.adapter == rollout.candidate
    bad = event.status >= 500 or event.status == 404  # 404: a replica that does not serve the adapter.
    return Observation(event.prediction_id, event.user_hash, canary, bad, event.occurred_at)
