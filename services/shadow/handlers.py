"""Kafka handlers of shadow: eligible predictions are replayed on the candidate.

consumes  predictions.logged · rollouts.changed (as a table)
produces  shadow.compared
"""

from __future__ import annotations

import asyncio
import logging

from schemas.base import utc_now
from schemas.conversation import Answer
from schemas.predictions import PredictionLogged
from schemas.rollouts import RolloutChanged, ShadowCompared
from services.shadow.clients import ReplayEngine, ShadowSampling, TrainingIndexes
from services.shadow.domain import DailyBudget, Request, is_eligible, pair_of, replays_per_pair, request_of
from services.shadow.settings import ShadowSettings
from shared.conversation import comparable_text
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import EventPublisher

logger = logging.getLogger(__name__)


class Handlers:
    def __init__(
        self,
        settings: ShadowSettings,
        sampling: ShadowSampling,
        training_indexes: TrainingIndexes,
        engine: ReplayEngine,
        publisher: EventPublisher,
    ) -> None:
        self._settings = settings
        self._sampling = sampling
        self._training_indexes = training_indexes
        self._engine = engine
        self._publisher = publisher
        self._budget = DailyBudget()
        self._out_of_budget: set[str] = set()
        self.rollouts: LatestByKey[RolloutChanged] = LatestByKey("rollouts.changed")

    def subscribe(self, consumers: Consumers) -> None:
        self.rollouts = consumers.table(RolloutChanged)
        consumers.on_batch(
            PredictionLogged, self.on_predictions, BatchOptions(self._settings.shadow_batch, wait_ms=100)
        )

    async def on_predictions(self, deliveries: list[Delivery[PredictionLogged]]) -> None:
        """Replay a batch's eligible predictions, a few at a time, and publish their pairs."""
        chosen = []
        for delivery in deliveries:
            rollout = self.rollouts.get(delivery.event.task)
            if rollout is not None and await self._is_chosen(delivery.event, rollout):
                chosen.append((delivery.event, rollout))
        if not chosen:
            return
        try:
            async with asyncio.TaskGroup() as group:
                comparisons = [group.create_task(self._compare(event, rollout)) for event, rollout in chosen]
        except ExceptionGroup as failures:  # The group cancelled the rest; the batch will be redelivered.
            raise failures.exceptions[0] from failures
        for comparison in comparisons:
            if (pair := comparison.result()) is not None:
                await self._publisher.publish(pair)

    async def _is_chosen(self, event: PredictionLogged, rollout: RolloutChanged) -> bool:
        if not is_eligible(event, rollout) or not self._sampling.sampled(event.task, event.answers[0].prediction_id):
            return False
        if event.latency_ms > 1000 * self._settings.shadow_timeout_seconds:  # No candidate could answer it in time.
            return False
        index = await self._training_indexes.for_rollout(rollout)
        if index.contains(comparable_text(event.call.messages)):
            return False
        limit = rollout.spec.rollout.shadow_requests_per_day
        within = self._budget.take(event.task, limit, utc_now(), replays_per_pair(event))
        if not within and event.task not in self._out_of_budget:
            logger.warning("%s: today's budget of %d shadow requests is spent", event.task, limit)
        (self._out_of_budget.discard if within else self._out_of_budget.add)(event.task)
        return within

    async def _compare(self, event: PredictionLogged, rollout: RolloutChanged) -> ShadowCompared | None:
        """Return the pair, or None where production does not answer the stored text: nothing to compare with."""
        request = request_of(event, rollout)
        production = await self._production_answer(event, rollout, request)
        if production is None:
            return None
        replay = await self._engine.candidate(rollout, request)
        return pair_of(event, rollout, production, replay.answer, replay.latency_ms, utc_now())

    async def _production_answer(
        self, event: PredictionLogged, rollout: RolloutChanged, request: Request
    ) -> Answer | None:
        """Return production's answer to the stored text; None where it has none that is whole."""
        if not event.redactions:
            return event.answers[0]
        answer = (await self._engine.production(rollout, request)).answer
        return answer if answer is not None and answer.is_whole else None
