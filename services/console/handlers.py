"""Events in: questions to the queue, results to the chronicle."""

from __future__ import annotations

from schemas.adapters import AdapterEvaluated, AdapterTrained
from schemas.base import Event
from schemas.cycles import CycleFinished, CycleStarted, StepFailed, StepProgressed
from schemas.datasets import DatasetBuilt
from schemas.failures import FailuresClustered
from schemas.labels import LabelRequested
from schemas.predictions import PredictionsRolledUp
from schemas.rollouts import RolloutChanged
from services.console.chronicle import Chronicle
from services.console.storage import Queue
from shared.transport import Consumers, Delivery

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
    def __init__(self, queue: Queue, chronicle: Chronicle) -> None:
        self._queue = queue
        self._chronicle = chronicle

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        consumers.on_batch(LabelRequested, self.on_requests)
        for event in FACTS:
            consumers.on(event, self._chronicle.add_fact)
        consumers.on(StepProgressed, self._chronicle.add_progress)
        consumers.on(PredictionsRolledUp, self._chronicle.add_hour)

    async def on_requests(self, deliveries: list[Delivery[LabelRequested]]) -> None:
        await self._queue.add_requests([delivery.event for delivery in deliveries])
