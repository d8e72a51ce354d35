"""Predictions in: the eligible ones are asked again of the candidate. Pairs out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from schemas.base import utc_now
from schemas.predictions import PredictionLogged
from schemas.rollouts import RolloutChanged, ShadowCompared
from services.shadow.clients import Engine, Flags, TrainingRows
from services.shadow.domain import Budget, eligible, is_near_duplicate, pair_of, replays_needed, running
from services.shadow.settings import ShadowSettings
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import EventPublisher

logger = logging.getLogger(__name__)


class Handlers:
    def __init__(
        self,
        settings: ShadowSettings,
        flags: Flags,
        training_rows: TrainingRows,
        engine: Engine,
        publisher: EventPublisher,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._flags = flags
        self._training_rows = training_rows
        self._engine = engine
        self._publisher = publisher
        self._now = now
        self._budget = Budget()
        self._out_of_budget: set[str] = set()
        self.rollouts: LatestByKey[RolloutChanged] = LatestByKey("rollouts.changed")

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        self.rollouts = consumers.table(RolloutChanged)
        consumers.on_batch(
            PredictionLogged, self.on_predictions, BatchOptions(self._settings.shadow_batch, wait_ms=100)
        )

    async def on_predictions(self, deliveries: list[Delivery[PredictionLogged]]) -> None:
        """Replay a batch's eligible predictions, a few at a time, and publish their pairs."""
        chosen = []
        for delivery in deliveries:
            rollout = self.rollouts.get(delivery.event.task)
            if rollout is not None and running(rollout) and await self._choose(delivery.event, rollout):
                chosen.append((delivery.event, rollout))
        if not chosen:
            return
        try:
            async with asyncio.TaskGroup() as group:
                replays = [group.create_task(self._compare(event, rollout)) for event, rollout in chosen]
        except ExceptionGroup as failures:  # The rest is cancelled already: the batch will come again.
            raise failures.exceptions[0] from failures
        for replay in replays:
            if (pair := replay.result()) is not None:
                await self._publisher.publish(pair)

    async def _choose(self, event: PredictionLogged, rollout: RolloutChanged) -> bool:
        if not eligible(event, rollout) or not self._flags.sampled(event.task, event.prediction_id):
            return False
        rows = await self._training_rows.near_duplicates(rollout)
        if is_near_duplicate(event, rows.contains):
            return False
        limit = rollout.spec.rollout.shadow_requests_per_day
        within = self._budget.take(event.task, limit, self._now(), replays_needed(event))
        if not within and event.task not in self._out_of_budget:
            logger.warning("%s: today's %d shadow requests are spent", event.task, limit)
        (self._out_of_budget.discard if within else self._out_of_budget.add)(event.task)
        return within

    async def _compare(self, event: PredictionLogged, rollout: RolloutChanged) -> ShadowCompared | None:
        """The pair; None where production does not answer the stored text: there is nothing to compare with."""
        production: str | None = event.answer
        if event.redactions:
            production = (await self._engine.production(rollout, event.messages)).answer
        if production is None:
            return None
        replay = await self._engine.candidate(rollout, event.messages)
        return pair_of(event, rollout, production, replay.answer, replay.latency_ms, self._now())
