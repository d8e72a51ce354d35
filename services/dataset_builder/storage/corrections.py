"""Corrections of reviewers and users, and outcomes of builds, in PostgreSQL.

Each method is one transaction. A correction is stored with its topic, partition and offset, so that a build takes
exactly what is below the cycle's fence. Nothing of an erased person is stored, so no build contains it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.base import Event
from schemas.catalog import topic_named, topic_of
from schemas.cycles import CycleFinished, PartitionFence
from schemas.datasets import DatasetBuilt, Origin
from schemas.labels import CorrectionSubmitted
from schemas.predictions import FeedbackGiven, SubjectForgotten
from schemas.tasks import TaskChanged, TaskKind
from services.dataset_builder.building.carry_over import Revision
from services.dataset_builder.building.places import Place, Places
from services.dataset_builder.building.votes import UserCorrection
from services.dataset_builder.storage.places import forget_places, read_places, save_places
from services.dataset_builder.tables import BUILDS, CORRECTIONS, FORGOTTEN, INCARNATION, OFFSETS, REVISIONS
from shared.kafka.delivery import Delivery, RecordPosition, TopicPartition
from shared.privacy.erasure import ErasedSubjects, erased_among, put_off_erasures, record_erasure
from shared.storage.database import transaction
from shared.storage.offsets import adopt_incarnation, advance_offsets, next_offsets, unread

_STORED = sa.select(CORRECTIONS.c.origin, CORRECTIONS.c.event, CORRECTIONS.c.clear_by)
_OF_REVIEWERS = CORRECTIONS.c.origin == Origin.REVIEWER.value
_READ_AT_ONCE = 2_000


@dataclass
class StoredCorrections:
    """What people said that answers should have been."""

    reviewers: list[CorrectionSubmitted] = field(default_factory=list)
    users: list[UserCorrection] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.reviewers) + len(self.users)


class SearchedCorrections(NamedTuple):
    """`clear`: those in which an earlier search by the same rules found no personal data."""

    clear: StoredCorrections
    others: StoredCorrections


SaveOutcome = Callable[[Event, Places], Awaitable[None]]


class PostgresCorrectionStore:
    """What people said, and what was built of it. Methods raise DependencyUnavailable while the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def adopt(self, incarnation: str) -> None:
        """Make all stored offsets those of this broker incarnation. Call it at the start, before anything is read."""
        async with transaction(self._engine) as connection:
            await adopt_incarnation(connection, INCARNATION, OFFSETS, incarnation, [CORRECTIONS.c.offset])

    async def save(self, deliveries: Sequence[Delivery[CorrectionSubmitted]]) -> None:
        """Store corrections but those of erased people. Idempotent. `advance` once what follows is published."""
        rows = [_row(d.event, Origin.REVIEWER, d, d.event.suggested_by) for d in deliveries]
        await self._save(rows, [])

    async def save_user_corrections(
        self, found: Sequence[tuple[UserCorrection, RecordPosition]], deliveries: Sequence[Delivery[FeedbackGiven]]
    ) -> None:
        """Store what users wrote, each with the position of its feedback, as `save` does, and advance the offsets."""
        rows = [_row(correction, Origin.USER, position, correction.author_hash) for correction, position in found]
        await self._save(rows, deliveries)

    async def erased(self, people: Iterable[tuple[str, str | None]]) -> ErasedSubjects:
        """Return the erased of these (task, user hash)."""
        async with transaction(self._engine) as connection:
            return await erased_among(connection, FORGOTTEN, people)

    async def save_revision(self, event: TaskChanged) -> None:
        """Store what later revisions of the task must know of this one. Idempotent."""
        row = {
            "task": event.task, "revision": event.spec.revision, "kind": event.spec.kind.value,
            "system_prompt": event.spec.system_prompt, "answer_form": event.spec.answer_form,
        }  # fmt: skip
        async with transaction(self._engine) as connection:
            await connection.execute(insert(REVISIONS).values(row).on_conflict_do_nothing())

    async def revisions(self, task: str) -> dict[str, Revision]:
        """Return all revisions that the task has had, by id."""
        async with transaction(self._engine) as connection:
            rows = await connection.execute(sa.select(REVISIONS).where(REVISIONS.c.task == task))
            return {row.revision: Revision(TaskKind(row.kind), row.system_prompt, row.answer_form) for row in rows}

    async def corrections_of(self, prediction_ids: Iterable[str]) -> list[CorrectionSubmitted]:
        """Return all reviewers' corrections of these predictions."""
        query = _STORED.where(CORRECTIONS.c.prediction_id.in_(list(prediction_ids)), _OF_REVIEWERS)
        in_log_order = query.order_by(CORRECTIONS.c.topic, CORRECTIONS.c.partition, CORRECTIONS.c.offset)
        return [correction async for part in self._read(in_log_order) for correction in part.others.reviewers]

    async def advance(self, deliveries: Sequence[RecordPosition | Delivery[Any]]) -> None:
        """Advance the offsets over records that need not be read again."""
        async with transaction(self._engine) as connection:
            await advance_offsets(connection, OFFSETS, deliveries)

    async def skip(self, position: RecordPosition | Delivery[Any]) -> None:
        """Advance the offset over a record of which nothing is stored, a dead-lettered one, say."""
        await self.advance([position])

    async def next_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the next offset to read of those of the partitions of which any record was read."""
        async with transaction(self._engine) as connection:
            return await next_offsets(connection, OFFSETS, partitions)

    async def forget(self, event: SubjectForgotten) -> None:
        """Delete the corrections about a person, and by them as a user, up to their request; store no more of it.

        Also those of reviewers who were shown a text of theirs: they may have taken it.
        """
        person, at = event.subject_hash, event.occurred_at
        about = sa.and_(CORRECTIONS.c.user_hash == person, CORRECTIONS.c.happened_at <= at)
        by = sa.and_(CORRECTIONS.c.author_hash == person, CORRECTIONS.c.given_at <= at)
        async with transaction(self._engine) as connection:
            await record_erasure(connection, FORGOTTEN, event)
            await forget_places(connection, event.task, person, at)
            await connection.execute(sa.delete(CORRECTIONS).where(CORRECTIONS.c.task == event.task, about | by))

    async def expire(self, task: str, before: datetime) -> None:
        """Delete the task's corrections of predictions made before a moment."""
        async with transaction(self._engine) as connection:
            expired = sa.and_(CORRECTIONS.c.task == task, CORRECTIONS.c.happened_at < before)
            await connection.execute(sa.delete(CORRECTIONS).where(expired))

    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]:
        """Return the partitions that are not stored up to the fence yet."""
        async with transaction(self._engine) as connection:
            return await unread(connection, OFFSETS, fence)

    def corrections_below(
        self, task: str, fence: Sequence[PartitionFence], rules: str
    ) -> AsyncIterator[SearchedCorrections]:
        """Yield all corrections of the task below the fence, whatever revision they were made under.

        `rules`: by which personal data is searched for.

        They come in parts, since all of them at once would be most of the memory of a build.
        """
        return self._read(_STORED.where(_below(task, fence)), rules)

    async def count_below(self, task: str, fence: Sequence[PartitionFence]) -> int:
        """Return the number of the task's corrections below the fence."""
        async with transaction(self._engine) as connection:
            total: int = (await connection.execute(_count_below(task, fence))).scalar_one()
        return total

    async def save_clear(self, rules: str, correction_ids: Sequence[str]) -> None:
        """Store that a search by these rules found no personal data in these corrections."""
        statement = sa.update(CORRECTIONS).values(clear_by=rules)
        async with transaction(self._engine) as connection:
            for start in range(0, len(correction_ids), _READ_AT_ONCE):
                part = list(correction_ids[start : start + _READ_AT_ONCE])
                await connection.execute(statement.where(CORRECTIONS.c.correction_id.in_(part)))

    async def outcome(self, cycle_id: str) -> Event | None:
        """Return the event that the build of this cycle ended with; None if there was no build yet."""
        async with transaction(self._engine) as connection:
            query = sa.select(BUILDS.c.topic, BUILDS.c.event).where(BUILDS.c.cycle_id == cycle_id)
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else topic_named(row.topic).event.model_validate_json(row.event)

    async def last_version(self, task: str) -> tuple[DatasetBuilt, bool] | None:
        """Return the task's newest version, and whether its cycle failed later on; None before the first one."""
        is_version = sa.and_(BUILDS.c.task == task, BUILDS.c.topic == topic_of(DatasetBuilt).name)
        query = sa.select(BUILDS.c.event, BUILDS.c.cycle_failed).where(is_version)
        async with transaction(self._engine) as connection:
            newest = (await connection.execute(query.order_by(BUILDS.c.ended_at.desc()).limit(1))).one_or_none()
        if newest is None:
            return None
        return DatasetBuilt.model_validate_json(newest.event), bool(newest.cycle_failed)

    async def save_end(self, event: CycleFinished) -> None:
        """Store whether the cycle of a build failed later on: then nothing was learned from its version."""
        failed = event.outcome == "failed"
        async with transaction(self._engine) as connection:
            of_cycle = sa.update(BUILDS).where(BUILDS.c.cycle_id == event.cycle_id)
            await connection.execute(of_cycle.values(cycle_failed=failed))

    async def places(self, task: str) -> dict[str, Place]:
        """Return the places that the task's builds decided so far, by prediction."""
        async with transaction(self._engine) as connection:
            return await read_places(connection, task)

    async def save_outcome(self, event: Event) -> None:
        """Store the event with which a cycle ended that has no build; the first outcome of a cycle stays."""
        async with transaction(self._engine) as connection:
            await _save_outcome(connection, event)

    @asynccontextmanager
    async def concluding(
        self, task: str, fence: Sequence[PartitionFence], count: int
    ) -> AsyncIterator[SaveOutcome | None]:
        """Give what stores a build's outcome, and have erasures wait until it is; None: of its `count` corrections some
        are gone by now, and what was built of them must not be published.

        All of it is one transaction: a version is published with nobody in it whose erasure was stored before.
        """
        async with transaction(self._engine) as connection:
            await put_off_erasures(connection)
            is_whole = (await connection.execute(_count_below(task, fence))).scalar_one() == count
            yield partial(_save_outcome, connection) if is_whole else None

    async def _save(self, rows: Sequence[dict[str, Any]], deliveries: Sequence[Delivery[Any]]) -> None:
        """Store rows but those of erased people, and advance the offsets."""
        async with transaction(self._engine) as connection:
            people = {(row["task"], row[person]) for row in rows for person in ("user_hash", "author_hash")}
            erased = await erased_among(connection, FORGOTTEN, people)
            kept = [
                row
                for row in rows
                if not erased.covers(row["task"], row["user_hash"], row["happened_at"])
                and not erased.covers(row["task"], row["author_hash"], row["given_at"])
            ]
            if kept:
                await connection.execute(insert(CORRECTIONS).on_conflict_do_nothing(), kept)
            await advance_offsets(connection, OFFSETS, deliveries)

    async def _read(self, query: Any, rules: str | None = None) -> AsyncIterator[SearchedCorrections]:
        async with transaction(self._engine) as connection:
            # Without yield_per the driver fetches about ten rows at a time, whatever `partitions` is told.
            result = await connection.stream(query, execution_options={"yield_per": _READ_AT_ONCE})
            async for part in result.partitions():
                yield await asyncio.to_thread(_parsed, part, rules)


async def _save_outcome(connection: AsyncConnection, event: Event, places: Places | None = None) -> None:
    """Store the event that a build ended with, and the places that it decided; the first outcome of a cycle stays.

    Places of rows are decided by a version that is published: nothing is trained on before.
    """
    row = {
        "cycle_id": event.cycle_id, "task": event.task, "ended_at": event.occurred_at,
        "topic": topic_of(type(event)).name, "event": event.model_dump_json(),
    }  # fmt: skip
    statement = insert(BUILDS).values(row).on_conflict_do_nothing().returning(BUILDS.c.cycle_id)
    is_first = (await connection.execute(statement)).one_or_none() is not None
    if is_first and places is not None and isinstance(event, DatasetBuilt):
        await save_places(connection, event.task, event.cycle_id, places)


def _parsed(rows: Sequence[Any], rules: str | None) -> SearchedCorrections:
    """Parse rows of `_STORED`. It takes a while: call it in a thread."""
    found = SearchedCorrections(StoredCorrections(), StoredCorrections())
    for origin, event, clear_by in rows:
        part = found.clear if rules is not None and clear_by == rules else found.others
        if origin == Origin.USER.value:
            part.users.append(UserCorrection.model_validate_json(event))
        else:
            part.reviewers.append(CorrectionSubmitted.model_validate_json(event))
    return found


def _count_below(task: str, fence: Sequence[PartitionFence]) -> Any:
    return sa.select(sa.func.count()).select_from(CORRECTIONS).where(_below(task, fence))


def _below(task: str, fence: Sequence[PartitionFence]) -> Any:
    columns = CORRECTIONS.c
    parts = [
        sa.and_(columns.topic == part.topic, columns.partition == part.partition, columns.offset < part.offset)
        for part in fence
    ]
    return sa.and_(columns.task == task, sa.or_(sa.false(), *parts))


def _row(
    correction: CorrectionSubmitted | UserCorrection,
    origin: Origin,
    position: Delivery[CorrectionSubmitted] | RecordPosition,
    author_hash: str | None,
) -> dict[str, Any]:
    """`author_hash`: the user whose words they are. When a reviewer takes some is not when they were written, which is
    known to nobody: any erasure since the prediction is later."""
    is_taken = origin is Origin.REVIEWER and author_hash is not None
    return {
        "correction_id": correction.correction_id, "prediction_id": correction.prediction_id, "task": correction.task,
        "origin": origin.value, "user_hash": correction.user_hash, "author_hash": author_hash,
        "topic": position.topic, "partition": position.partition, "offset": position.offset,
        # Without what is as by default, which is most of an event: a build reads all of them, in a third of the time.
        "event": correction.model_dump_json(exclude_defaults=True), "happened_at": correction.happened_at,
        "given_at": correction.happened_at if is_taken else correction.occurred_at,
    }  # fmt: skip
