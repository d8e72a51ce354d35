"""Appends events to the lake, erases people, and in the background publishes roll-ups and maintains the lake.

Erasure and retention also delete the media that the gateway kept in the artifact store.
"""

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
from services.prediction_log.maintenance.compaction import MaintenancePolicy
from services.prediction_log.maintenance.maintenance import Maintenance
from services.prediction_log.maintenance.retention import delete_expired_media
from services.prediction_log.offsets.resume import ReadTopicIds, resume_from
from services.prediction_log.rollups.hourly import RollUps
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.storage import DeltaLake
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.decoding import Decoder
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import Publisher
from shared.storage.media import MediaStore
from shared.threads import in_thread

_MAX_RECORDS, _WAIT_MS = 20_000, 250
"""Of one Delta commit, and how long a batch may take to fill."""
_ROLL_UPS = 5
"""In the time of one round of maintenance."""
MIN_BATCH_BYTES = 1024 * 1024
"""Compressed bytes that are worth a commit at once. Each commit is a file for a task and day, and an entry in the
table's history, so fewer events wait until the batch's time is up."""


class Handlers:
    def __init__(
        self,
        settings: PredictionLogSettings,
        lake: DeltaLake,
        publisher: Publisher,
        read_topic_ids: ReadTopicIds,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._lake = lake
        self._publisher = publisher
        self._read_topic_ids = read_topic_ids
        self._now = now
        self._tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)
        self._media = MediaStore(settings.artifacts_uri)
        self._erasure_requests = ErasureRequests(settings.lake_uri, self._media, settings.kafka_incarnation)
        self._roll_ups = RollUps(settings.lake_uri)
        self._maintenance = Maintenance(settings.lake_uri, maintenance_policy(settings))

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        self._append_to_table(consumers, PredictionLogged, PREDICTIONS)
        self._append_to_table(consumers, FeedbackGiven, FEEDBACK)
        self._append_to_table(consumers, RequestObserved, REQUESTS)
        consumers.on_batch(
            SubjectForgotten,
            self.on_subjects_forgotten,
            resume=resume_from(self._erasure_requests, FORGOTTEN, self._read_topic_ids),
        )
        self._tasks = consumers.table(TaskChanged)

    def _append_to_table(self, consumers: Consumers, event: type[Event], table: str) -> None:
        """Make every event of this class rows of the table."""

        async def append(deliveries: list[Delivery[Any]]) -> None:
            await asyncio.to_thread(self._lake.append, table, deliveries)

        consumers.on_batch(
            event,
            append,
            BatchOptions(_MAX_RECORDS, _WAIT_MS, MIN_BATCH_BYTES),
            resume=resume_from(self._lake, table, self._read_topic_ids),
            decode=Decoder(event),
        )

    async def on_subjects_forgotten(self, deliveries: list[Delivery[SubjectForgotten]]) -> None:
        await asyncio.to_thread(self._erasure_requests.apply, deliveries)

    async def roll_up_once(self) -> None:
        """Publish the hours that changed. Raises DependencyUnavailable; hours not published yet stay pending."""
        for hour in await in_thread(self._roll_ups.pending):
            try:
                events = await in_thread(self._roll_ups.count, hour, self._now())
            except Exception:  # One with a damaged file must not hold up those of all tasks for good.
                self._roll_ups.put_off(hour)
                raise
            for event in events:
                await self._publisher.publish(event)
            self._roll_ups.published(hour)

    async def roll_up_forever(self) -> None:
        """Publish roll-ups every few minutes, in the background."""
        while True:
            await asyncio.sleep(self._settings.prediction_log_maintenance_seconds / _ROLL_UPS)
            await self.roll_up_once()

    async def read_tasks(self) -> None:
        """Background, started when the broker answers: read the tasks to the end of their topic."""
        await self._tasks.read_to_end(self._settings)

    async def maintain_once(self) -> None:
        """Run one round of maintenance over the lake and the kept media. Raises DependencyUnavailable.

        Nothing is deleted by age before the tasks are read.
        """
        # An older retention of a task, read at a start before the newer one, would delete what is to be kept.
        tasks = self._tasks if self._tasks.is_read else ()
        retention_days = {changed.task: changed.spec.retention_days for changed in tasks}
        results = await asyncio.gather(
            in_thread(self._maintenance.run, retention_days, self._now()),
            in_thread(delete_expired_media, self._media, retention_days, self._now()),
            return_exceptions=True,  # The store of one may be away.
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def maintain_forever(self) -> None:
        """Maintain the lake in the background, starting at a random moment so that replicas alternate."""
        pause = self._settings.prediction_log_maintenance_seconds
        await asyncio.sleep(random.uniform(0.0, pause))  # noqa: S311 - spreads replicas, no secret
        while True:
            await self.maintain_once()
            await asyncio.sleep(pause)


def maintenance_policy(settings: PredictionLogSettings) -> MaintenancePolicy:
    """Return the maintenance's part of the settings."""
    return MaintenancePolicy(
        interval=timedelta(seconds=settings.prediction_log_maintenance_seconds),
        grace_hours=settings.prediction_log_grace_hours,
    )
