"""Events in: appended to the lake. Events out: the hours, rolled up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

from schemas.base import utc_now
from schemas.lake import FEEDBACK, PREDICTIONS
from schemas.predictions import FeedbackGiven, PredictionLogged, SubjectForgotten
from services.prediction_log.domain import feedback_row, prediction_row, roll_up
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.storage import Lake
from shared.transport import Consumers, Delivery, Publishes


class Handlers:
    def __init__(
        self,
        settings: PredictionLogSettings,
        lake: Lake,
        publisher: Publishes,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._lake = lake
        self._publisher = publisher
        self._now = now
        self._writing = asyncio.Lock()  # Our own commits in turn: they would only conflict with each other.

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        batch, wait = self._settings.prediction_log_batch, self._settings.prediction_log_wait_ms
        consumers.on_batch(PredictionLogged, self.on_predictions, max_records=batch, wait_ms=wait)
        consumers.on_batch(FeedbackGiven, self.on_feedback, max_records=batch, wait_ms=wait)
        consumers.on(SubjectForgotten, self.on_forgotten)

    async def on_predictions(self, deliveries: list[Delivery[PredictionLogged]]) -> None:
        async with self._writing:
            await asyncio.to_thread(self._lake.append, PREDICTIONS, deliveries, prediction_row)

    async def on_feedback(self, deliveries: list[Delivery[FeedbackGiven]]) -> None:
        async with self._writing:
            await asyncio.to_thread(self._lake.append, FEEDBACK, deliveries, feedback_row)

    async def on_forgotten(self, event: SubjectForgotten) -> None:
        async with self._writing:
            await asyncio.to_thread(self._lake.forget, event.task, event.subject_hash)

    async def roll_up_once(self) -> None:
        """Restate the last hours."""
        now = self._now()
        start = now.replace(minute=0, second=0, microsecond=0) - timedelta(
            hours=self._settings.prediction_log_roll_up_hours - 1
        )
        rows = await asyncio.to_thread(self._lake.since, start)
        for event in await asyncio.to_thread(roll_up, rows, now):
            await self._publisher.publish(event)

    async def roll_up_forever(self) -> None:
        """Background: a roll-up every few minutes."""
        while True:
            await asyncio.sleep(self._settings.prediction_log_roll_up_seconds)
            await self.roll_up_once()
