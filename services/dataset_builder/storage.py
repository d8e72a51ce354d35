"""Corrections, roll-ups of traffic and outcomes of builds in PostgreSQL, schema `dataset_builder`.

Each method is one transaction. A correction is stored with its partition and offset, so that a build takes exactly
what is below the cycle's fence. Nothing of an erased person is stored, so no build contains it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.base import Event
from schemas.catalog import topic_named, topic_of
from schemas.cycles import PartitionFence
from schemas.labels import CorrectionSubmitted
from schemas.predictions import PredictionsRolledUp, SubjectForgotten
from services.dataset_builder.tables import BUILDS, CORRECTIONS, FORGOTTEN, INCARNATION, OFFSETS, TRAFFIC
from shared.kafka.delivery import Delivery, RecordPosition
from shared.privacy.erasure import erased_among, record_erasure
from shared.storage.database import transaction
from shared.storage.offsets import adopt_incarnation, advance_offsets, unread

_IN_LOG_ORDER = sa.select(CORRECTIONS.c.event).order_by(CORRECTIONS.c.partition, CORRECTIONS.c.offset)
_TRAFFIC_RETENTION = timedelta(days=7)


class CorrectionStore(Protocol):
    """What the handlers need of the corrections and of what was built from them."""

    async def save(self, deliveries: Sequence[Delivery[CorrectionSubmitted]]) -> None: ...
    async def corrections_of(self, prediction_ids: Iterable[str]) -> list[CorrectionSubmitted]: ...
    async def skip(self, position: RecordPosition) -> None: ...
    async def forget(self, event: SubjectForgotten) -> None: ...
    async def expire(self, task: str, before: datetime) -> None: ...
    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]: ...
    async def corrections_below(
        self, task: str, revision: str, fence: Sequence[PartitionFence]
    ) -> list[CorrectionSubmitted]: ...
    async def count_below(self, task: str, revision: str, fence: Sequence[PartitionFence]) -> int: ...
    async def outcome(self, cycle_id: str) -> Event | None: ...
    async def save_outcome(self, event: Event) -> None: ...


class TrafficStore(Protocol):
    """What the handlers need of production's answers."""

    async def save_hour(self, event: PredictionsRolledUp) -> None: ...
    async def answer_counts(self, task: str, revision: str, hours: int) -> dict[str, int]: ...


class PostgresCorrectionStore:
    """See `CorrectionStore`. Methods raise DependencyUnavailable while the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def adopt(self, incarnation: str) -> None:
        """Make all stored offsets those of this broker incarnation. Call it at the start, before anything is read."""
        async with transaction(self._engine) as connection:
            await adopt_incarnation(connection, INCARNATION, OFFSETS, incarnation, [CORRECTIONS.c.offset])

    async def save(self, deliveries: Sequence[Delivery[CorrectionSubmitted]]) -> None:
        """Store corrections and advance the offsets. Idempotent. Corrections of erased people are left out."""
        async with transaction(self._engine) as connection:
            people = ((delivery.event.task, delivery.event.user_hash) for delivery in deliveries)
            erased = await erased_among(connection, FORGOTTEN, people)
            rows = [
                _row(delivery)
                for delivery in deliveries
                if not erased.covers(delivery.event.task, delivery.event.user_hash, delivery.event.happened_at)
            ]
            if rows:
                await connection.execute(insert(CORRECTIONS).on_conflict_do_nothing(), rows)
            await advance_offsets(connection, OFFSETS, deliveries)

    async def corrections_of(self, prediction_ids: Iterable[str]) -> list[CorrectionSubmitted]:
        """Return all corrections of these predictions."""
        query = _IN_LOG_ORDER.where(CORRECTIONS.c.prediction_id.in_(list(prediction_ids)))
        return await self._events(query)

    async def skip(self, position: RecordPosition) -> None:
        """Advance the offset over a dead-lettered record."""
        async with transaction(self._engine) as connection:
            await advance_offsets(connection, OFFSETS, [position])

    async def forget(self, event: SubjectForgotten) -> None:
        """Delete a person's corrections up to their request, and store no more of that time."""
        async with transaction(self._engine) as connection:
            await record_erasure(connection, FORGOTTEN, event)
            of_person = sa.and_(CORRECTIONS.c.task == event.task, CORRECTIONS.c.user_hash == event.subject_hash)
            await connection.execute(
                sa.delete(CORRECTIONS).where(of_person, CORRECTIONS.c.happened_at <= event.occurred_at)
            )

    async def expire(self, task: str, before: datetime) -> None:
        """Delete the task's corrections of predictions made before a moment."""
        async with transaction(self._engine) as connection:
            expired = sa.and_(CORRECTIONS.c.task == task, CORRECTIONS.c.happened_at < before)
            await connection.execute(sa.delete(CORRECTIONS).where(expired))

    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]:
        """Return the partitions that are not stored up to the fence yet."""
        async with transaction(self._engine) as connection:
            return await unread(connection, OFFSETS, fence)

    async def corrections_below(
        self, task: str, revision: str, fence: Sequence[PartitionFence]
    ) -> list[CorrectionSubmitted]:
        """Return all corrections of the task's revision below the fence."""
        return await self._events(_IN_LOG_ORDER.where(_below(task, revision, fence)))

    async def count_below(self, task: str, revision: str, fence: Sequence[PartitionFence]) -> int:
        """Return the number of the task's revision's corrections below the fence."""
        query = sa.select(sa.func.count()).select_from(CORRECTIONS).where(_below(task, revision, fence))
        async with transaction(self._engine) as connection:
            return int((await connection.execute(query)).scalar_one())

    async def outcome(self, cycle_id: str) -> Event | None:
        """Return the event that the build of this cycle ended with; None if there was no build yet."""
        async with transaction(self._engine) as connection:
            query = sa.select(BUILDS.c.topic, BUILDS.c.event).where(BUILDS.c.cycle_id == cycle_id)
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else topic_named(row.topic).event.model_validate_json(row.event)

    async def save_outcome(self, event: Event) -> None:
        """Store the event that a build ended with; the first one of a cycle stays."""
        row = {
            "cycle_id": event.cycle_id, "topic": topic_of(type(event)).name, "event": event.model_dump_json()
        }  # fmt: skip
        async with transaction(self._engine) as connection:
            await connection.execute(insert(BUILDS).values(row).on_conflict_do_nothing())

    async def _events(self, query: Any) -> list[CorrectionSubmitted]:
        async with transaction(self._engine) as connection:
            stored = (await connection.execute(query)).scalars()
            return [CorrectionSubmitted.model_validate_json(event) for event in stored]


class PostgresTrafficStore:
    """See `TrafficStore`. Methods raise DependencyUnavailable while the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def save_hour(self, event: PredictionsRolledUp) -> None:
        """Store an hour's answers; a later value replaces an earlier one. Drops hours older than a week."""
        row = {
            "task": event.task, "task_revision": event.task_revision, "variant": event.variant.value,
            "adapter": event.adapter or "", "hour": event.hour,
            "answers": {label.answer: label.count for label in event.answers},
        }  # fmt: skip
        async with transaction(self._engine) as connection:
            statement = insert(TRAFFIC).values(row)
            key = list(TRAFFIC.primary_key.columns)
            await connection.execute(
                statement.on_conflict_do_update(index_elements=key, set_={"answers": statement.excluded.answers})
            )
            oldest = event.hour - _TRAFFIC_RETENTION
            await connection.execute(sa.delete(TRAFFIC).where(TRAFFIC.c.task == event.task, TRAFFIC.c.hour < oldest))

    async def answer_counts(self, task: str, revision: str, hours: int) -> dict[str, int]:
        """Return how often production gave each answer in the last `hours` that were rolled up."""
        of_task = sa.and_(TRAFFIC.c.task == task, TRAFFIC.c.task_revision == revision)
        newest = sa.select(sa.func.max(TRAFFIC.c.hour)).where(of_task).scalar_subquery()
        query = sa.select(TRAFFIC.c.answers).where(of_task, TRAFFIC.c.hour > newest - timedelta(hours=hours))
        counts: Counter[str] = Counter()
        async with transaction(self._engine) as connection:
            for answers in (await connection.execute(query)).scalars():
                counts.update(answers)
        return dict(counts)


def _below(task: str, revision: str, fence: Sequence[PartitionFence]) -> Any:
    topic = topic_of(CorrectionSubmitted).name
    parts = [
        sa.and_(CORRECTIONS.c.partition == part.partition, CORRECTIONS.c.offset < part.offset)
        for part in fence
        if part.topic == topic
    ]
    return sa.and_(CORRECTIONS.c.task == task, CORRECTIONS.c.task_revision == revision, sa.or_(sa.false(), *parts))


def _row(delivery: Delivery[CorrectionSubmitted]) -> dict[str, Any]:
    event = delivery.event
    return {
        "correction_id": event.correction_id, "prediction_id": event.prediction_id, "task": event.task,
        "task_revision": event.task_revision, "user_hash": event.user_hash, "partition": delivery.partition,
        "offset": delivery.offset, "event": event.model_dump_json(), "happened_at": event.happened_at,
    }  # fmt: skip
