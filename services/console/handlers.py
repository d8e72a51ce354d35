"""Events in: questions to the queue, results to the history."""

from __future__ import annotations

from datetime import datetime

from schemas.adapters import AdapterEvaluated, AdapterTrained
from schemas.base import Event
from schemas.cycles import CycleFinished, CycleStarted, StepFailed, StepProgressed
from schemas.datasets import DatasetBuilt
from schemas.failures import FailuresClustered
from schemas.labels import LabelRequested
from schemas.predictions import PredictionsRolledUp, SubjectForgotten
from schemas.rollouts import RolloutChanged
from services.console.history import CycleHistory
from services.console.storage import Queue
from shared.kafka.consumers import Consumers
from shared.kafka.delivery import Delivery

FACTS: tuple[type[Event], ...] = (
    CycleStarted,
    FailuresClustered,
    DatasetBuilt,
    AdapterTrained,
    AdapterEvaluated,
    RolloutChanged,
    StepFailed,
    CycleFinished,
)
"""What is kept of a cycle, in the order in which it usually happens."""


class Handlers:
    def __init__(self, queue: Queue, history: CycleHistory) -> None:
        self._queue = queue
        self._history = history

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        consumers.on_batch(LabelRequested, self.on_requests)
        for event in FACTS:
            if event is not RolloutChanged:
                consumers.on(event, self._history.add_event)
        consumers.on(RolloutChanged, self.on_rollout)
        consumers.on(SubjectForgotten, self.on_forgotten)
        consumers.on(StepProgressed, self._history.add_progress)
        consumers.on(PredictionsRolledUp, self._history.add_hour)

    async def on_requests(self, deliveries: list[Delivery[LabelRequested]]) -> None:
        await self._queue.add_requests([delivery.event for delivery in deliveries])

    async def on_rollout(self, event: RolloutChanged) -> None:
        """Noted first: a question that comes later then finds that its candidate has ended."""
        await self._history.add_event(event)
        await self._queue.withdraw(event)

    async def on_forgotten(self, event: SubjectForgotten) -> None:
        """Questions and answers of a person go, and what failure modes quote of them."""
        await self._queue.forget(event)
        await self._history.forget(event)

    async def expire(self, task: str, before: datetime) -> None:
        """What was asked before that moment goes, as it leaves the lake."""
        await self._queue.expire(task, before)
        await self._history.expire(task, before)
