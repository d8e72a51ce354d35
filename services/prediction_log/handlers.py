"""Events in: appended to the lake, and people forgotten. Events out: the hours, rolled up. By a schedule: policy."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from schemas.base import Event, utc_now
from schemas.catalog import topic_of
from schemas.lake import FEEDBACK, FORGOTTEN, PREDICTIONS, REQUESTS
from schemas.predictions import FeedbackGiven, PredictionLogged, RequestObserved, SubjectForgotten
from schemas.tasks import TaskChanged
from services.prediction_log.erasure.subjects import ErasureRequests
from services.prediction_log.maintenance.maintenance import Maintenance, MaintenancePolicy
from services.prediction_log.offsets.resume import ReadTopicIds, resume_from
from services.prediction_log.rollups.hourly import RollUps
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.storage import Lake
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.decoding import Decoder
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import EventPublisher
from shared.threads import in_thread

FULL_BYTES = 1024 * 1024
"""So much, compressed, is worth a commit of its own at once. Each commit is a file for a task and day, and a line in
the table's history: a trickle of events waits for company."""


class Handlers:
    def __init__(
        self,
        settings: PredictionLogSettings,
        lake: Lake,
        publisher: EventPublisher,
        topic_ids: ReadTopicIds,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._lake = lake
        self._publisher = publisher
        self._topic_ids = topic_ids
        self._now = now
        self._tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)
        self._forgotten = ErasureRequests(settings.lake_uri, settings.kafka_incarnation)
        self._roll_ups = RollUps(settings.lake_uri)
        self._maintenance = Maintenance(settings.lake_uri, policy(settings))

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        self._store(consumers, PredictionLogged, PREDICTIONS)
        self._store(consumers, FeedbackGiven, FEEDBACK)
        self._store(consumers, RequestObserved, REQUESTS)
        consumers.on_batch(
            SubjectForgotten, self.on_forgotten, resume=resume_from(self._forgotten, FORGOTTEN, self._topic_ids)
        )
        self._tasks = consumers.table(TaskChanged)

    def _store(self, consumers: Consumers, event: type[Event], table: str) -> None:
        """Every event of this class becomes a row of the table."""

        async def append(deliveries: list[Delivery[Any]]) -> None:
            await asyncio.to_thread(self._lake.append, table, deliveries)

        consumers.on_batch(
            event,
            append,
            BatchOptions(self._settings.prediction_log_batch, self._settings.prediction_log_wait_ms, FULL_BYTES),
            resume=resume_from(self._lake, table, self._topic_ids),
            decode=Decoder(event),
        )

    async def on_forgotten(self, deliveries: list[Delivery[SubjectForgotten]]) -> None:
        await asyncio.to_thread(self._forgotten.take, deliveries)

    async def roll_up_once(self) -> None:
        """Restate the hours that changed. Raises DependencyUnavailable; what was not published stays to be done."""
        for hour in await in_thread(self._roll_ups.pending):
            for event in await in_thread(self._roll_ups.count, hour, self._now()):
                await self._publisher.publish(event)
            self._roll_ups.done(hour)

    async def roll_up_forever(self) -> None:
        """Background: a roll-up every few minutes."""
        while True:
            await asyncio.sleep(self._settings.prediction_log_roll_up_seconds)
            await self.roll_up_once()

    async def maintain_once(self) -> None:
        """One round over the lake. Raises DependencyUnavailable."""
        retention = {changed.task: changed.spec.retention_days for changed in self._tasks}
        await in_thread(self._maintenance.run, retention, self._now())

    async def maintain_forever(self) -> None:
        """Background: the maintenance, from a random moment on so that replicas take turns."""
        pause = self._settings.prediction_log_maintenance_seconds
        await asyncio.sleep(random.uniform(0.0, pause))  # noqa: S311 - spreads replicas, no secret
        while True:
            await self.maintain_once()
            await asyncio.sleep(pause)


def policy(settings: PredictionLogSettings) -> MaintenancePolicy:
    """The maintenance's part of the settings."""
    return MaintenancePolicy(
        interval=timedelta(seconds=settings.prediction_log_maintenance_seconds),
        small_files=settings.prediction_log_small_files,
        target_bytes=settings.prediction_log_file_bytes,
        grace_hours=settings.prediction_log_grace_hours,
        orphan_hours=settings.prediction_log_orphan_hours,
    )
