"""Stores questions in the review queue and results in the cycle history."""

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
from services.console.history import PostgresCycleHistory
from services.console.storage import PostgresQueue
from shared.kafka.consumers import Consumers
from shared.kafka.delivery import Delivery

CYCLE_EVENTS: tuple[type[Event], ...] = (
    CycleStarted,
    FailuresClustered,
    DatasetBuilt,
    AdapterTrained,
    AdapterEvaluated,
    RolloutChanged,
    StepFailed,
    CycleFinished,
)
"""The events stored of a cycle, in their usual order."""


class Handlers:
    def __init__(self, queue: PostgresQueue, history: PostgresCycleHistory) -> None:
        self._queue = queue
        self._history = history

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        consumers.on_batch(LabelRequested, self.on_requests)
        for event in CYCLE_EVENTS:
            if event is not RolloutChanged:
                consumers.on(event, self._history.add_event)
        consumers.on(RolloutChanged, self.on_rollout)
        consumers.on(StepProgressed, self._history.add_progress)
        consumers.on(PredictionsRolledUp, self._history.add_hour)

    async def on_requests(self, deliveries: list[Delivery[LabelRequested]]) -> None:
        await self._queue.add_requests([delivery.event for delivery in deliveries])

    async def on_rollout(self, event: RolloutChanged) -> None:
        """Store the rollout first: a question that arrives later then finds that its candidate's rollout has ended."""
        await self._history.add_event(event)
        await self._queue.withdraw(event)

    async def on_subject_forgotten(self, event: SubjectForgotten) -> None:
        """Delete a person's questions with their answers, and the texts that failure modes quote of them."""
        await self._queue.erase(event)
        await self._history.erase(event)

    async def drop_before(self, task: str, before: datetime) -> None:
        """Delete questions and quotations of predictions made before a moment, as the lake does."""
        await self._queue.drop_before(task, before)
        await self._history.drop_before(task, before)
