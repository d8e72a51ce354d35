"""Corrections in PostgreSQL, schema `dataset_builder`; finished data sets in the artifact store.

Each method is one transaction. A correction is stored as the event it came in, with where it lay, so that a build
takes exactly what is below the cycle's fence. Of a forgotten person nothing is stored, so no build has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy import Column, Text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.base import Event
from schemas.catalog import topic_named, topic_of
from schemas.cycles import PartitionFence
from schemas.labels import CorrectionSubmitted
from schemas.predictions import PredictionsRolledUp, SubjectForgotten
from shared.kafka.delivery import Delivery, RecordPosition
from shared.privacy.erasure import erased_among, erased_subjects_table, record_erasure
from shared.storage.database import transaction
from shared.storage.offsets import adopt_incarnation, advance_offsets, incarnation_table, offsets_table, unread

metadata = sa.MetaData()
positions = offsets_table(metadata)
broker = incarnation_table(metadata)
corrections = sa.Table(
    "corrections", metadata,
    Column("correction_id", Text, primary_key=True), Column("prediction_id", Text), Column("task", Text),
    Column("task_revision", Text), Column("user_hash", Text), Column("partition", sa.Integer),
    Column("offset", sa.BigInteger), Column("event", Text), Column("happened_at", sa.DateTime(timezone=True)),
)  # fmt: skip
forgotten = erased_subjects_table(metadata)
traffic = sa.Table(
    "traffic", metadata,
    Column("task", Text, primary_key=True), Column("task_revision", Text, primary_key=True),
    Column("variant", Text, primary_key=True), Column("adapter", Text, primary_key=True),
    Column("hour", sa.DateTime(timezone=True), primary_key=True), Column("answers", sa.JSON),
)  # fmt: skip
builds = sa.Table(
    "builds", metadata, Column("cycle_id", Text, primary_key=True), Column("topic", Text), Column("event", Text)
)
_IN_ORDER = sa.select(corrections.c.event).order_by(corrections.c.partition, corrections.c.offset)
_KEEP_TRAFFIC = timedelta(days=7)
_TOPIC = topic_of(CorrectionSubmitted).name


class Store(Protocol):
    """What the handlers need of the database."""

    async def keep(self, deliveries: Sequence[Delivery[CorrectionSubmitted]]) -> None: ...
    async def on_prediction(self, prediction_ids: Iterable[str]) -> list[CorrectionSubmitted]: ...
    async def skip(self, place: RecordPosition) -> None: ...
    async def forget(self, event: SubjectForgotten) -> None: ...
    async def expire(self, task: str, before: datetime) -> None: ...
    async def put_traffic(self, event: PredictionsRolledUp) -> None: ...
    async def traffic(self, task: str, revision: str, hours: int) -> dict[str, int]: ...
    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]: ...
    async def below(self, task: str, revision: str, fence: Sequence[PartitionFence]) -> list[CorrectionSubmitted]: ...
    async def outcome(self, cycle_id: str) -> Event | None: ...
    async def save_outcome(self, event: Event) -> None: ...


class PostgresStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def close(self) -> None:
        await self._engine.dispose()

    async def adopt(self, incarnation: str) -> None:
        """Before anything is read: take all offsets from here on for those of this incarnation of the broker."""
        async with transaction(self._engine) as connection:
            await adopt_incarnation(connection, broker, positions, incarnation, [corrections.c.offset])

    async def keep(self, deliveries: Sequence[Delivery[CorrectionSubmitted]]) -> None:
        """Store corrections, each once and none of a forgotten person, and note the positions."""
        async with transaction(self._engine) as connection:
            gone = await erased_among(connection, forgotten, ((d.event.task, d.event.user_hash) for d in deliveries))
            rows = [
                _row(delivery)
                for delivery in deliveries
                if not gone.covers(delivery.event.task, delivery.event.user_hash, delivery.event.happened_at)
            ]
            if rows:
                await connection.execute(insert(corrections).on_conflict_do_nothing(), rows)
            await advance_offsets(connection, positions, deliveries)

    async def on_prediction(self, prediction_ids: Iterable[str]) -> list[CorrectionSubmitted]:
        """All that people said of these predictions."""
        query = _IN_ORDER.where(corrections.c.prediction_id.in_(list(prediction_ids)))
        return await self._events(query)

    async def skip(self, place: RecordPosition) -> None:
        """A record went to the dead letters: nothing is kept of it, but it was read."""
        async with transaction(self._engine) as connection:
            await advance_offsets(connection, positions, [place])

    async def forget(self, event: SubjectForgotten) -> None:
        """Delete what came of a person's requests, and remember to take no more of it."""
        async with transaction(self._engine) as connection:
            await record_erasure(connection, forgotten, event)
            theirs = sa.and_(corrections.c.task == event.task, corrections.c.user_hash == event.subject_hash)
            await connection.execute(
                sa.delete(corrections).where(theirs, corrections.c.happened_at <= event.occurred_at)
            )

    async def expire(self, task: str, before: datetime) -> None:
        """Delete the corrections of predictions from before a moment."""
        async with transaction(self._engine) as connection:
            old = sa.and_(corrections.c.task == task, corrections.c.happened_at < before)
            await connection.execute(sa.delete(corrections).where(old))

    async def put_traffic(self, event: PredictionsRolledUp) -> None:
        """An hour, restated: the last value wins. Hours older than a week are dropped."""
        answers = {one.answer: one.count for one in event.answers}
        row = {
            "task": event.task, "task_revision": event.task_revision, "variant": event.variant.value,
            "adapter": event.adapter or "", "hour": event.hour, "answers": answers,
        }  # fmt: skip
        async with transaction(self._engine) as connection:
            statement = insert(traffic).values(row)
            key = list(traffic.primary_key.columns)
            await connection.execute(
                statement.on_conflict_do_update(index_elements=key, set_={"answers": statement.excluded.answers})
            )
            await connection.execute(
                sa.delete(traffic).where(traffic.c.task == event.task, traffic.c.hour < event.hour - _KEEP_TRAFFIC)
            )

    async def traffic(self, task: str, revision: str, hours: int) -> dict[str, int]:
        """How often production gave each answer in the last `hours` that were rolled up."""
        mine = sa.and_(traffic.c.task == task, traffic.c.task_revision == revision)
        newest = sa.select(sa.func.max(traffic.c.hour)).where(mine).scalar_subquery()
        query = sa.select(traffic.c.answers).where(mine, traffic.c.hour > newest - timedelta(hours=hours))
        counts: Counter[str] = Counter()
        async with transaction(self._engine) as connection:
            for answers in (await connection.execute(query)).scalars():
                counts.update(answers)
        return dict(counts)

    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]:
        async with transaction(self._engine) as connection:
            return await unread(connection, positions, fence)

    async def below(self, task: str, revision: str, fence: Sequence[PartitionFence]) -> list[CorrectionSubmitted]:
        """All corrections of the task's revision below the fence."""
        inside = [
            sa.and_(corrections.c.partition == part.partition, corrections.c.offset < part.offset)
            for part in fence
            if part.topic == _TOPIC
        ]
        query = _IN_ORDER.where(
            corrections.c.task == task, corrections.c.task_revision == revision, sa.or_(sa.false(), *inside)
        )
        return await self._events(query)

    async def outcome(self, cycle_id: str) -> Event | None:
        """What the build of this cycle came to, if it was done already."""
        async with transaction(self._engine) as connection:
            query = sa.select(builds.c.topic, builds.c.event).where(builds.c.cycle_id == cycle_id)
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else topic_named(row.topic).event.model_validate_json(row.event)

    async def save_outcome(self, event: Event) -> None:
        row = {
            "cycle_id": event.cycle_id, "topic": topic_of(type(event)).name, "event": event.model_dump_json()
        }  # fmt: skip
        async with transaction(self._engine) as connection:
            await connection.execute(insert(builds).values(row).on_conflict_do_nothing())

    async def _events(self, query: Any) -> list[CorrectionSubmitted]:
        async with transaction(self._engine) as connection:
            stored = (await connection.execute(query)).scalars()
            return [CorrectionSubmitted.model_validate_json(event) for event in stored]


def _row(delivery: Delivery[CorrectionSubmitted]) -> dict[str, Any]:
    event = delivery.event
    return {
        "correction_id": event.correction_id, "prediction_id": event.prediction_id, "task": event.task,
        "task_revision": event.task_revision, "user_hash": event.user_hash, "partition": delivery.partition,
        "offset": delivery.offset, "event": event.model_dump_json(), "happened_at": event.happened_at,
    }  # fmt: skip
