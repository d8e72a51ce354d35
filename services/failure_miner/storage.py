"""Suspects and failure modes in PostgreSQL, schema `failure_miner`. Each method is one transaction.

A suspect is stored with the position of its event, and so is its label: a cycle takes what is below its fence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.cycles import PartitionFence
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import SubjectForgotten
from services.failure_miner.clustering_storage import rewrite, save_clustering, without_erased
from services.failure_miner.domain import WORDS_OF_ANOTHER, Suspect
from services.failure_miner.modes import FoundMode, StoredMode
from services.failure_miner.sampling import ReviewQuestion, Sightings
from services.failure_miner.sampling_storage import draw_questions, sample_figures
from services.failure_miner.tables import (
    ASKED,
    CLUSTERINGS,
    FORGOTTEN,
    INCARNATION,
    MODES,
    OFFSETS,
    SUSPECTS,
    is_one_of,
)
from shared.kafka.delivery import Delivery, RecordPosition, TopicPartition
from shared.privacy.erasure import ErasedSubjects, erased_among, record_erasure
from shared.storage.database import transaction
from shared.storage.offsets import adopt_incarnation, advance_offsets, next_offsets, unread


class PostgresSuspectStore:
    """Suspects, questions and modes. Methods raise DependencyUnavailable while the database is away."""

    def __init__(self, engine: AsyncEngine, corrections_topic: str) -> None:
        self._engine = engine
        self._corrections_topic = corrections_topic

    async def adopt(self, incarnation: str) -> None:
        """Make all stored offsets those of this broker incarnation. Call it at the start, before anything is read."""
        async with transaction(self._engine) as connection:
            columns = [SUSPECTS.c.offset, SUSPECTS.c.label_offset]
            await adopt_incarnation(connection, INCARNATION, OFFSETS, incarnation, columns)

    async def save(self, suspects: Sequence[Suspect], seen: Sightings) -> list[ReviewQuestion]:
        """Store suspects, draw questions about what was seen. Idempotent. `advance` once the questions are published.

        Returns the questions that were drawn, now or earlier. Nothing of an erased person is stored or asked.
        """
        async with transaction(self._engine) as connection:
            await _insert_suspects(connection, suspects)
            return await draw_questions(connection, seen)

    async def advance(self, deliveries: Sequence[Delivery[Any]]) -> None:
        """Advance the offsets over records that need not be read again."""
        async with transaction(self._engine) as connection:
            await advance_offsets(connection, OFFSETS, deliveries)

    async def stored_ids(self, prediction_ids: Iterable[str]) -> set[str]:
        """Return those of the predictions that are stored as suspects."""
        query = sa.select(SUSPECTS.c.prediction_id).where(is_one_of(SUSPECTS.c.prediction_id, prediction_ids))
        async with transaction(self._engine) as connection:
            return set(await connection.scalars(query))

    async def asked_otherwise(self, prediction_ids: Iterable[str]) -> set[str]:
        """Return those of the predictions that people are asked about, and not because a user called them wrong."""
        is_complaint = ASKED.c.purpose == Purpose.FEEDBACK.value
        query = (
            sa.select(ASKED.c.prediction_id)
            .where(is_one_of(ASKED.c.prediction_id, prediction_ids))
            .group_by(ASKED.c.prediction_id)
            .having(~sa.func.bool_or(is_complaint))
        )
        async with transaction(self._engine) as connection:
            return set((await connection.execute(query)).scalars())

    async def sample_figures(
        self, task: str, until: datetime, since: datetime | None
    ) -> tuple[dict[Purpose, int], float]:
        """Return how many of a task's predictions of this time chance drew for each purpose, and the audit's latest
        rate."""
        async with transaction(self._engine) as connection:
            return await sample_figures(connection, task, until, since)

    async def save_labels(
        self, deliveries: Sequence[Delivery[CorrectionSubmitted]], suspects: Sequence[Suspect]
    ) -> None:
        """Store suspects that became so by being corrected, and people's labels on suspects, the newest of each.

        The newest is the one that was given last: a dead letter that is replayed comes after what is newer.
        Who labelled a pair and then cannot tell takes that label back. Of a text that may be another user's no word is
        kept (`suspect_of`).
        """
        async with transaction(self._engine) as connection:
            await _insert_suspects(connection, suspects)
            for delivery in deliveries:
                event, label = delivery.event, SUSPECTS.c
                own = sa.and_(label.label_request == event.request_id, label.label_reviewer == event.reviewer)
                await connection.execute(
                    sa.update(SUSPECTS)
                    .where(label.prediction_id == event.prediction_id)
                    .where(sa.or_(label.label_at.is_(None), label.label_at < event.occurred_at))
                    .where(sa.true() if event.label is not None else own)
                    .values(
                        label=event.label if event.suggested_by is None else WORDS_OF_ANOTHER,
                        label_partition=delivery.partition, label_offset=delivery.offset,
                        label_at=event.occurred_at, label_request=event.request_id, label_reviewer=event.reviewer,
                    )
                )  # fmt: skip
            await advance_offsets(connection, OFFSETS, deliveries)

    async def skip(self, position: RecordPosition | Delivery[Any]) -> None:
        """Advance the offset over a record of which nothing is stored, a dead-lettered one, say."""
        async with transaction(self._engine) as connection:
            await advance_offsets(connection, OFFSETS, [position])

    async def forget(self, event: SubjectForgotten) -> None:
        """Delete a person's suspects, questions and quotations up to their request, and store no more of that time."""
        async with transaction(self._engine) as connection:
            await record_erasure(connection, FORGOTTEN, event)
            for table, moment in ((SUSPECTS, SUSPECTS.c.occurred_at), (ASKED, ASKED.c.predicted_at)):
                of_person = sa.and_(table.c.task == event.task, table.c.user_hash == event.subject_hash)
                await connection.execute(sa.delete(table).where(of_person, moment <= event.occurred_at))
            erased = ErasedSubjects({(event.task, event.subject_hash): event.occurred_at})
            quoting = CLUSTERINGS.c.event.contains(event.subject_hash, autoescape=True)
            await rewrite(connection, event.task, lambda clustered: without_erased(clustered, erased), quoting)

    async def expire(self, task: str, before: datetime) -> None:
        """Delete the task's suspects and questions from before a moment, and what its failure modes quote from then."""
        async with transaction(self._engine) as connection:
            for table, moment in ((SUSPECTS, SUSPECTS.c.occurred_at), (ASKED, ASKED.c.predicted_at)):
                await connection.execute(sa.delete(table).where(table.c.task == task, moment < before))
            await rewrite(connection, task, lambda clustered: clustered.without(lambda s: s.predicted_at < before))

    async def erased(self, people: Iterable[tuple[str, str | None]]) -> ErasedSubjects:
        """Return the erased of these (task, user hash)."""
        async with transaction(self._engine) as connection:
            return await erased_among(connection, FORGOTTEN, people)

    async def next_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the next offset to read of those of the partitions of which any record was read."""
        async with transaction(self._engine) as connection:
            return await next_offsets(connection, OFFSETS, partitions)

    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]:
        """Return the partitions that are not stored up to the fence yet."""
        async with transaction(self._engine) as connection:
            return await unread(connection, OFFSETS, fence)

    async def outcome(self, cycle_id: str) -> FailuresClustered | None:
        """Return the event of this cycle's clustering; None if it was not clustered yet."""
        async with transaction(self._engine) as connection:
            query = sa.select(CLUSTERINGS.c.event).where(CLUSTERINGS.c.cycle_id == cycle_id)
            event = (await connection.execute(query)).scalar_one_or_none()
        return None if event is None else FailuresClustered.model_validate_json(event)

    async def unclustered(
        self, task: str, revision: str, until: datetime, fence: Sequence[PartitionFence], limit: int
    ) -> list[Suspect]:
        """Return the task's suspects up to `until` and below the fence that no cycle took yet, the newest `limit`.

        A label above the fence is left out: it belongs to the next cycle.
        """
        if not fence:
            return []
        below = sa.or_(*(_below(SUSPECTS.c.topic, SUSPECTS.c.partition, SUSPECTS.c.offset, part) for part in fence))
        label_below = sa.or_(
            sa.false(),
            *(
                sa.and_(SUSPECTS.c.label_partition == part.partition, SUSPECTS.c.label_offset < part.offset)
                for part in fence
                if part.topic == self._corrections_topic
            ),
        )
        query = (
            sa.select(SUSPECTS, label_below.label("label_below"))
            .where(SUSPECTS.c.task == task, SUSPECTS.c.task_revision == revision)
            .where(SUSPECTS.c.occurred_at <= until, SUSPECTS.c.cycle_id.is_(None), below)
            .order_by(SUSPECTS.c.occurred_at.desc(), SUSPECTS.c.prediction_id)
            .limit(limit)
        )
        async with transaction(self._engine) as connection:
            return [_suspect(row) for row in await connection.execute(query)]

    async def modes(self, task: str, revision: str) -> list[StoredMode]:
        """Return the failure modes of the task's earlier cycles."""
        async with transaction(self._engine) as connection:
            query = sa.select(MODES).where(MODES.c.task == task, MODES.c.task_revision == revision)
            rows = await connection.execute(query.order_by(MODES.c.mode_id))
            return [StoredMode(row.mode_id, _vector(row.centroid)) for row in rows]

    async def labelled_members(self, task: str, revision: str) -> dict[str, str]:
        """Return the failure mode of each suspect of earlier cycles that a person labelled."""
        async with transaction(self._engine) as connection:
            query = sa.select(SUSPECTS.c.prediction_id, SUSPECTS.c.mode_id).where(
                SUSPECTS.c.task == task, SUSPECTS.c.task_revision == revision,
                SUSPECTS.c.mode_id.is_not(None), SUSPECTS.c.label.is_not(None),
            )  # fmt: skip
            return {row.prediction_id: row.mode_id for row in await connection.execute(query)}

    async def save_clustering(
        self, event: FailuresClustered, suspects: Sequence[Suspect], found: Sequence[FoundMode]
    ) -> FailuresClustered:
        """Store a cycle's event, its suspects as taken, and its modes, whose members are indices into `suspects`.

        Returns the event as it is stored: without people who were erased meanwhile.
        """
        async with transaction(self._engine) as connection:
            return await save_clustering(connection, event, suspects, found)


def _below(topic: Any, partition: Any, offset: Any, part: PartitionFence) -> Any:
    return sa.and_(topic == part.topic, partition == part.partition, offset < part.offset)


async def _insert_suspects(connection: AsyncConnection, suspects: Sequence[Suspect]) -> None:
    """Store new suspects, except those of erased people.

    One that is stored without a label gets what its user wrote since: complaints mostly come after the answer was
    doubted.
    """
    erased = await erased_among(connection, FORGOTTEN, ((s.task, s.user_hash) for s in suspects))
    rows = [
        {
            "prediction_id": s.prediction_id, "task": s.task, "task_revision": s.task_revision,
            "occurred_at": s.occurred_at, "text": _storable(s.text), "answer": _storable(s.answer),
            "confidence": s.confidence,
            "topic": s.topic, "partition": s.partition, "offset": s.offset, "embedding": s.embedding.tobytes(),
            "user_hash": s.user_hash, "label": s.label,
        }
        for s in suspects
        if not erased.covers(s.task, s.user_hash, s.occurred_at)
    ]  # fmt: skip
    if rows:
        stored, new = SUSPECTS.c, insert(SUSPECTS)
        label, user_hash = new.excluded.label, new.excluded.user_hash
        unlabelled = stored.label.is_(None) & stored.label_at.is_(None) & label.is_not(None)
        of_the_same = stored.user_hash.is_(None) | (stored.user_hash == user_hash)
        labelled = new.on_conflict_do_update(
            index_elements=[stored.prediction_id],
            set_={"label": label, "user_hash": sa.func.coalesce(stored.user_hash, user_hash)},
            where=unlabelled & of_the_same,
        )
        await connection.execute(labelled, rows)


def _suspect(row: Any) -> Suspect:
    return Suspect(
        prediction_id=row.prediction_id, task=row.task, task_revision=row.task_revision,
        occurred_at=row.occurred_at, text=row.text, answer=row.answer, confidence=row.confidence, topic=row.topic,
        partition=row.partition, offset=row.offset, embedding=_vector(row.embedding),
        label=row.label if row.label_offset is None or row.label_below else None, user_hash=row.user_hash,
    )  # fmt: skip


def _storable(text: str) -> str:
    """Remove NUL, the one character that JSON may carry and PostgreSQL cannot store."""
    return text.replace("\x00", "")


def _vector(data: bytes) -> Any:
    return np.frombuffer(data, dtype=np.float32)
