"""Suspects and failure modes in PostgreSQL, schema `failure_miner`. Each method is one transaction.

A suspect remembers where its event lay, and so does its label: a cycle takes what lies below its fence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Protocol

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Column, Text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.cycles import PartitionFence
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted
from schemas.predictions import SubjectForgotten
from services.failure_miner.domain import FoundMode, StoredMode, Suspect
from shared.kafka.delivery import Delivery, RecordPosition
from shared.privacy.erasure import ErasedSubjects, erased_among, erased_subjects_table, record_erasure
from shared.storage.database import transaction
from shared.storage.offsets import adopt_incarnation, advance_offsets, incarnation_table, offsets_table, unread

metadata = sa.MetaData()
positions = offsets_table(metadata)
broker = incarnation_table(metadata)
suspects = sa.Table(
    "suspects", metadata,
    Column("prediction_id", Text, primary_key=True), Column("task", Text), Column("task_revision", Text),
    Column("occurred_at", sa.DateTime(timezone=True)), Column("text", Text), Column("answer", Text),
    Column("confidence", sa.Float), Column("topic", Text), Column("partition", sa.Integer),
    Column("offset", sa.BigInteger), Column("embedding", sa.LargeBinary), Column("user_hash", Text),
    Column("label", Text), Column("label_partition", sa.Integer), Column("label_offset", sa.BigInteger),
    Column("cycle_id", Text), Column("mode_id", Text),
)  # fmt: skip
modes = sa.Table(
    "modes", metadata,
    Column("mode_id", Text, primary_key=True), Column("task", Text), Column("task_revision", Text),
    Column("name", Text), Column("centroid", sa.LargeBinary), Column("first_cycle", Text), Column("last_cycle", Text),
)  # fmt: skip
asked = sa.Table(
    "asked", metadata, Column("prediction_id", Text, primary_key=True), Column("task", Text), Column("day", sa.Date)
)
forgotten = erased_subjects_table(metadata)
clusterings = sa.Table(
    "clusterings", metadata, Column("cycle_id", Text, primary_key=True), Column("task", Text), Column("event", Text)
)


@dataclass(frozen=True)
class Wish:
    """A question that one would like to ask people, if the task's budget of the day allows."""

    prediction_id: str
    task: str
    day: date
    budget: int


class Store(Protocol):
    """What the handlers need of the database."""

    async def keep(
        self, found: Sequence[Suspect], wishes: Sequence[Wish], deliveries: Sequence[Delivery[Any]]
    ) -> set[str]: ...
    async def known(self, prediction_ids: Iterable[str]) -> set[str]: ...
    async def correct(self, deliveries: Sequence[Delivery[CorrectionSubmitted]], found: Sequence[Suspect]) -> None: ...
    async def skip(self, place: RecordPosition) -> None: ...
    async def forget(self, event: SubjectForgotten) -> None: ...
    async def forgotten(self, people: Iterable[tuple[str, str | None]]) -> ErasedSubjects: ...
    async def expire(self, task: str, before: datetime) -> None: ...
    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]: ...
    async def outcome(self, cycle_id: str) -> FailuresClustered | None: ...
    async def open_suspects(
        self, task: str, revision: str, until: datetime, fence: Sequence[PartitionFence], limit: int
    ) -> list[Suspect]: ...
    async def modes(self, task: str, revision: str) -> list[StoredMode]: ...
    async def save_clustering(
        self, event: FailuresClustered, taken: Sequence[Suspect], found: Sequence[FoundMode]
    ) -> FailuresClustered: ...


class PostgresStore:
    def __init__(self, engine: AsyncEngine, corrections_topic: str) -> None:
        self._engine = engine
        self._corrections_topic = corrections_topic

    async def close(self) -> None:
        await self._engine.dispose()

    async def adopt(self, incarnation: str) -> None:
        """Before anything is read: take all offsets from here on for those of this incarnation of the broker."""
        async with transaction(self._engine) as connection:
            offsets = [suspects.c.offset, suspects.c.label_offset]
            await adopt_incarnation(connection, broker, positions, incarnation, offsets)

    async def keep(
        self, found: Sequence[Suspect], wishes: Sequence[Wish], deliveries: Sequence[Delivery[Any]]
    ) -> set[str]:
        """Store suspects (each once), spend budget on wishes in their order, note the positions: all or nothing.

        Returns the predictions among the wishes that are asked about, now or before. Of a forgotten person nothing
        is stored and nobody is asked.
        """
        async with transaction(self._engine) as connection:
            gone = await _insert_suspects(connection, found)
            granted = await _grant(connection, [wish for wish in wishes if wish.prediction_id not in gone])
            await advance_offsets(connection, positions, deliveries)
        return granted

    async def known(self, prediction_ids: Iterable[str]) -> set[str]:
        async with transaction(self._engine) as connection:
            query = sa.select(suspects.c.prediction_id).where(suspects.c.prediction_id.in_(list(prediction_ids)))
            return set((await connection.execute(query)).scalars())

    async def correct(self, deliveries: Sequence[Delivery[CorrectionSubmitted]], found: Sequence[Suspect]) -> None:
        """Note people's labels on suspects; `found` are predictions that became suspects by being corrected."""
        async with transaction(self._engine) as connection:
            await _insert_suspects(connection, found)
            for delivery in deliveries:
                if delivery.event.label is not None:
                    await connection.execute(
                        sa.update(suspects)
                        .where(suspects.c.prediction_id == delivery.event.prediction_id)
                        .where(sa.func.coalesce(suspects.c.label_offset, -1) <= delivery.offset)
                        .values(
                            label=delivery.event.label,
                            label_partition=delivery.partition,
                            label_offset=delivery.offset,
                        )
                    )
            await advance_offsets(connection, positions, deliveries)

    async def skip(self, place: RecordPosition) -> None:
        """A record went to the dead letters: nothing is kept of it, but it was read."""
        async with transaction(self._engine) as connection:
            await advance_offsets(connection, positions, [place])

    async def forget(self, event: SubjectForgotten) -> None:
        """Delete a person's suspects and what failure modes quote of them; remember to take no more of theirs."""
        async with transaction(self._engine) as connection:
            await record_erasure(connection, forgotten, event)
            theirs = sa.and_(suspects.c.task == event.task, suspects.c.user_hash == event.subject_hash)
            await connection.execute(sa.delete(suspects).where(theirs, suspects.c.occurred_at <= event.occurred_at))
            gone = ErasedSubjects({(event.task, event.subject_hash): event.occurred_at})
            quoting = clusterings.c.event.contains(event.subject_hash, autoescape=True)
            await _rewrite(connection, event.task, lambda clustered: _without(clustered, gone), quoting)

    async def expire(self, task: str, before: datetime) -> None:
        """Delete the suspects from before a moment and what failure modes quote from before it."""
        async with transaction(self._engine) as connection:
            old = sa.and_(suspects.c.task == task, suspects.c.occurred_at < before)
            await connection.execute(sa.delete(suspects).where(old))
            await _rewrite(connection, task, lambda clustered: clustered.without(lambda s: s.predicted_at < before))

    async def forgotten(self, people: Iterable[tuple[str, str | None]]) -> ErasedSubjects:
        """The forgotten among these (task, user hash)."""
        async with transaction(self._engine) as connection:
            return await erased_among(connection, forgotten, people)

    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]:
        async with transaction(self._engine) as connection:
            return await unread(connection, positions, fence)

    async def outcome(self, cycle_id: str) -> FailuresClustered | None:
        """What this cycle's clustering said, if it was done already."""
        async with transaction(self._engine) as connection:
            query = sa.select(clusterings.c.event).where(clusterings.c.cycle_id == cycle_id)
            event = (await connection.execute(query)).scalar_one_or_none()
        return None if event is None else FailuresClustered.model_validate_json(event)

    async def open_suspects(
        self, task: str, revision: str, until: datetime, fence: Sequence[PartitionFence], limit: int
    ) -> list[Suspect]:
        """Suspects of the task up to `until` and below the fence that no cycle took yet.

        Over `limit`: the newest. A label above the fence is not seen: it belongs to the next cycle.
        """
        if not fence:
            return []
        inside = sa.or_(*(_below(suspects.c.topic, suspects.c.partition, suspects.c.offset, part) for part in fence))
        labelled = sa.or_(
            sa.false(),
            *(
                sa.and_(suspects.c.label_partition == part.partition, suspects.c.label_offset < part.offset)
                for part in fence
                if part.topic == self._corrections_topic
            ),
        )
        query = (
            sa.select(suspects, labelled.label("label_inside"))
            .where(suspects.c.task == task, suspects.c.task_revision == revision)
            .where(suspects.c.occurred_at <= until, suspects.c.cycle_id.is_(None), inside)
            .order_by(suspects.c.occurred_at.desc(), suspects.c.prediction_id)
            .limit(limit)
        )
        async with transaction(self._engine) as connection:
            return [_suspect(row) for row in await connection.execute(query)]

    async def modes(self, task: str, revision: str) -> list[StoredMode]:
        async with transaction(self._engine) as connection:
            query = sa.select(modes).where(modes.c.task == task, modes.c.task_revision == revision)
            rows = await connection.execute(query.order_by(modes.c.mode_id))
            return [StoredMode(row.mode_id, _vector(row.centroid)) for row in rows]

    async def save_clustering(
        self, event: FailuresClustered, taken: Sequence[Suspect], found: Sequence[FoundMode]
    ) -> FailuresClustered:
        """What a cycle found: the event to publish, whom it took (`found` counts into them), the modes as they are.

        Returns the event as it is stored: without who was forgotten meanwhile.
        """
        mode_of = {taken[i].prediction_id: one.mode.mode_id for one in found for i in one.members}
        groups: dict[str | None, list[str]] = {}
        for suspect in taken:
            groups.setdefault(mode_of.get(suspect.prediction_id), []).append(suspect.prediction_id)
        async with transaction(self._engine) as connection:
            quoted = {(event.task, source.user_hash) for mode in event.modes for source in mode.sources}
            event = _without(event, await erased_among(connection, forgotten, quoted))
            for mode_id, members in groups.items():
                await connection.execute(
                    sa.update(suspects)
                    .where(suspects.c.prediction_id.in_(members))
                    .values(cycle_id=event.cycle_id, mode_id=mode_id)
                )
            for one in found:
                await connection.execute(_upsert_mode(event, one))
            row = {"cycle_id": event.cycle_id, "task": event.task, "event": event.model_dump_json()}
            await connection.execute(insert(clusterings).values(row).on_conflict_do_nothing())
        return event


async def _rewrite(
    connection: AsyncConnection,
    task: str,
    change: Callable[[FailuresClustered], FailuresClustered],
    which: sa.ColumnElement[bool] | None = None,
) -> None:
    """Store the task's clusterings, or only some, as `change` makes them."""
    query = sa.select(clusterings).where(clusterings.c.task == task, sa.true() if which is None else which)
    for row in (await connection.execute(query)).all():
        before = FailuresClustered.model_validate_json(row.event)
        if (kept := change(before)) != before:
            this = clusterings.c.cycle_id == row.cycle_id
            await connection.execute(sa.update(clusterings).where(this).values(event=kept.model_dump_json()))


def _without(event: FailuresClustered, gone: ErasedSubjects) -> FailuresClustered:
    return event.without(lambda source: gone.covers(event.task, source.user_hash, source.predicted_at))


def _below(topic: Any, partition: Any, offset: Any, part: PartitionFence) -> Any:
    return sa.and_(topic == part.topic, partition == part.partition, offset < part.offset)


def _upsert_mode(event: FailuresClustered, one: FoundMode) -> Any:
    fresh = {"name": one.mode.name, "centroid": one.centroid.tobytes(), "last_cycle": event.cycle_id}
    statement = insert(modes).values(
        mode_id=one.mode.mode_id,
        task=event.task,
        task_revision=event.task_revision,
        first_cycle=event.cycle_id,
        **fresh,
    )
    return statement.on_conflict_do_update(index_elements=["mode_id"], set_=fresh)


async def _insert_suspects(connection: AsyncConnection, found: Sequence[Suspect]) -> set[str]:
    """Store what is new; returns the predictions that are left out, because their person is forgotten."""
    people = await erased_among(connection, forgotten, ((s.task, s.user_hash) for s in found))
    gone = {s.prediction_id for s in found if people.covers(s.task, s.user_hash, s.occurred_at)}
    found = [s for s in found if s.prediction_id not in gone]
    if not found:
        return gone
    rows = [
        {
            "prediction_id": s.prediction_id, "task": s.task, "task_revision": s.task_revision,
            "occurred_at": s.occurred_at, "text": _storable(s.text), "answer": _storable(s.answer),
            "confidence": s.confidence,
            "topic": s.topic, "partition": s.partition, "offset": s.offset, "embedding": s.embedding.tobytes(),
            "user_hash": s.user_hash, "label": s.label,
        }
        for s in found
    ]  # fmt: skip
    await connection.execute(insert(suspects).on_conflict_do_nothing(), rows)
    return gone


async def _grant(connection: AsyncConnection, wishes: Sequence[Wish]) -> set[str]:
    """Wishes that were granted before, and as many more as each task's budget of the day has left."""
    if not wishes:
        return set()
    for task in sorted({wish.task for wish in wishes}):  # Two processes must not spend the same budget.
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(f"asked {task}"))))
    ids = [wish.prediction_id for wish in wishes]
    granted = set(
        (await connection.execute(sa.select(asked.c.prediction_id).where(asked.c.prediction_id.in_(ids)))).scalars()
    )
    days = {(wish.task, wish.day) for wish in wishes}
    rows = await connection.execute(
        sa.select(asked.c.task, asked.c.day, sa.func.count().label("spent"))
        .where(sa.tuple_(asked.c.task, asked.c.day).in_(list(days)))
        .group_by(asked.c.task, asked.c.day)
    )
    spent: dict[tuple[str, date], int] = {(row.task, row.day): row.spent for row in rows}
    fresh = []
    for wish in wishes:
        place = (wish.task, wish.day)
        if wish.prediction_id not in granted and spent.get(place, 0) < wish.budget:
            spent[place] = spent.get(place, 0) + 1
            granted.add(wish.prediction_id)
            fresh.append({"prediction_id": wish.prediction_id, "task": wish.task, "day": wish.day})
    if fresh:
        await connection.execute(insert(asked).on_conflict_do_nothing(), fresh)
    return granted


def _suspect(row: Any) -> Suspect:
    return Suspect(
        prediction_id=row.prediction_id, task=row.task, task_revision=row.task_revision,
        occurred_at=row.occurred_at, text=row.text, answer=row.answer, confidence=row.confidence, topic=row.topic,
        partition=row.partition, offset=row.offset, embedding=_vector(row.embedding),
        label=row.label if row.label_offset is None or row.label_inside else None, user_hash=row.user_hash,
    )  # fmt: skip


def _storable(text: str) -> str:
    """PostgreSQL takes every character but NUL, which JSON may carry."""
    return text.replace("\x00", "")


def _vector(data: bytes) -> Any:
    return np.frombuffer(data, dtype=np.float32)
