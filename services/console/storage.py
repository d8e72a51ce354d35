"""Stores the review queue: questions and answers. Every write is idempotent.

All methods raise DependencyUnavailable while the database is unavailable. The events of cycles are in `history.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Select, and_, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.catalog import topic_of
from schemas.labels import LabelRequested, Purpose
from schemas.predictions import SubjectForgotten
from schemas.rollouts import RolloutChanged
from services.console.domain import RUNNING, ReviewAnswer
from services.console.tables import ANSWERS, EVENTS, FORGOTTEN, REQUESTS
from shared.privacy.erasure import erased_among, record_erasure
from shared.storage.database import transaction

_TICKET = REQUESTS.c.purpose == Purpose.DISCORDANT_PAIR.value
_ROLLOUTS = topic_of(RolloutChanged).name


class Queue(Protocol):
    """What reviews and handlers need of the storage."""

    async def add_requests(self, requests: Sequence[LabelRequested]) -> None: ...
    async def request(self, request_id: str) -> tuple[LabelRequested, int] | None: ...
    async def answered(self, request_id: str, reviewer: str) -> bool: ...
    async def record(self, request_id: str, reviewer: str, answer: ReviewAnswer, at: datetime) -> None: ...
    async def tickets(
        self, task: str, revision: str | None, reviewer: str, limit: int, skipped: Collection[str] = ()
    ) -> list[LabelRequested]: ...
    async def other_questions(
        self,
        task: str,
        revision: str | None,
        reviewer: str,
        limit: int,
        purpose: Purpose | None = None,
        skipped: Collection[str] = (),
    ) -> list[LabelRequested]: ...
    async def open_by_purpose(self, task: str, revision: str | None) -> dict[str, int]: ...
    async def has_requests(self, task: str) -> bool: ...
    async def erase(self, event: SubjectForgotten) -> None: ...
    async def withdraw(self, event: RolloutChanged) -> None: ...
    async def drop_before(self, task: str, before: datetime) -> None: ...


class PostgresQueue:
    """Implements `Queue` on PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add_requests(self, requests: Sequence[LabelRequested]) -> None:
        """Add questions, except existing ones, those of erased people, and tickets of rollouts that have ended."""
        async with transaction(self._engine) as connection:
            erased = await erased_among(connection, FORGOTTEN, ((r.task, r.user_hash) for r in requests))
            ended = await _ended(connection, requests)
            rows = [
                _row(r)
                for r in requests
                if not erased.covers(r.task, r.user_hash, r.happened_at)
                and not (r.ticket_id is not None and r.cycle_id in ended and r.occurred_at <= ended[r.cycle_id])
            ]
            if rows:
                await connection.execute(insert(REQUESTS).on_conflict_do_nothing(), rows)

    async def request(self, request_id: str) -> tuple[LabelRequested, int] | None:
        """Return a question and how many more answers it needs, or None if it does not exist."""
        query = select(REQUESTS.c.request, REQUESTS.c.needed).where(REQUESTS.c.request_id == request_id)
        async with transaction(self._engine) as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else (LabelRequested.model_validate_json(row.request), row.needed)

    async def answered(self, request_id: str, reviewer: str) -> bool:
        """Return True if this reviewer has answered this question."""
        query = select(exists().where(ANSWERS.c.request_id == request_id, ANSWERS.c.reviewer == reviewer))
        async with transaction(self._engine) as connection:
            return bool(await connection.scalar(query))

    async def record(self, request_id: str, reviewer: str, answer: ReviewAnswer, at: datetime) -> None:
        """Store an answer and reduce the number of answers that its question needs. Idempotent."""
        row = {
            "request_id": request_id,
            "reviewer": reviewer,
            "label": answer.label,
            "preference": answer.preference,
            "seconds": answer.seconds,
            "answered_at": at,
        }
        async with transaction(self._engine) as connection:
            new = insert(ANSWERS).values(row).on_conflict_do_nothing().returning(ANSWERS.c.request_id)
            if (await connection.execute(new)).one_or_none() is not None:
                answered = update(REQUESTS).where(REQUESTS.c.request_id == request_id)
                await connection.execute(answered.values(needed=func.greatest(REQUESTS.c.needed - 1, 0)))

    async def tickets(
        self, task: str, revision: str | None, reviewer: str, limit: int, skipped: Collection[str] = ()
    ) -> list[LabelRequested]:
        """Return discordant pairs, first in first out: which ones get labels must not depend on their content."""
        query = _open(task, revision).where(_TICKET, _unanswered_by(reviewer))
        return await self._questions(query.order_by(REQUESTS.c.arrived), limit, skipped)

    async def other_questions(
        self,
        task: str,
        revision: str | None,
        reviewer: str,
        limit: int,
        purpose: Purpose | None = None,
        skipped: Collection[str] = (),
    ) -> list[LabelRequested]:
        """Return all other questions, by priority. A tie-break is never asked of one of the first two reviewers."""
        where = ~_TICKET if purpose is None else REQUESTS.c.purpose == purpose.value
        query = _open(task, revision).where(where, _unanswered_by(reviewer), ~_asked_before(reviewer))
        return await self._questions(query.order_by(REQUESTS.c.priority.desc(), REQUESTS.c.arrived), limit, skipped)

    async def open_by_purpose(self, task: str, revision: str | None) -> dict[str, int]:
        """Count the questions that still need an answer, by purpose."""
        query = _open(task, revision).with_only_columns(REQUESTS.c.purpose, func.count()).group_by(REQUESTS.c.purpose)
        async with transaction(self._engine) as connection:
            return {purpose: count for purpose, count in await connection.execute(query)}

    async def has_requests(self, task: str) -> bool:
        """Return True if the queue has any question of this task."""
        async with transaction(self._engine) as connection:
            return bool(await connection.scalar(select(exists().where(REQUESTS.c.task == task))))

    async def erase(self, event: SubjectForgotten) -> None:
        """Delete a person's questions with their answers; a redelivery does not add them again."""
        async with transaction(self._engine) as connection:
            await record_erasure(connection, FORGOTTEN, event)
            theirs = and_(REQUESTS.c.task == event.task, REQUESTS.c.user_hash == event.subject_hash)
            # Their answers are deleted too: ON DELETE CASCADE.
            await connection.execute(delete(REQUESTS).where(theirs, REQUESTS.c.happened_at <= event.occurred_at))

    async def withdraw(self, event: RolloutChanged) -> None:
        """Close the tickets of a rollout that has ended: its pairs need no more labels."""
        if event.stage in RUNNING or event.cycle_id is None:
            return
        of_rollout = and_(REQUESTS.c.cycle_id == event.cycle_id, REQUESTS.c.asked_at <= event.occurred_at)
        async with transaction(self._engine) as connection:
            open_tickets = update(REQUESTS).where(_TICKET, REQUESTS.c.needed > 0, of_rollout)
            await connection.execute(open_tickets.values(needed=0))

    async def drop_before(self, task: str, before: datetime) -> None:
        """Delete the questions about predictions made before a moment, with their answers."""
        async with transaction(self._engine) as connection:
            old = and_(REQUESTS.c.task == task, REQUESTS.c.happened_at < before)
            await connection.execute(delete(REQUESTS).where(old))

    async def _questions(self, query: Select[Any], limit: int, skipped: Collection[str]) -> list[LabelRequested]:
        if skipped:
            query = query.where(REQUESTS.c.request_id.not_in(list(skipped)))
        async with transaction(self._engine) as connection:
            rows = await connection.execute(query.limit(limit))
            return [LabelRequested.model_validate_json(row.request) for row in rows]


def _open(task: str, revision: str | None) -> Select[Any]:
    """Select the open questions of a task's revision (None: any): answers for an older revision cannot be used."""
    query = select(REQUESTS.c.request).where(REQUESTS.c.task == task, REQUESTS.c.needed > 0)
    return query if revision is None else query.where(REQUESTS.c.task_revision == revision)


def _unanswered_by(reviewer: str) -> Any:
    return ~exists().where(ANSWERS.c.request_id == REQUESTS.c.request_id, ANSWERS.c.reviewer == reviewer)


def _asked_before(reviewer: str) -> Any:
    """Select tie-breaks on predictions that the reviewer has answered a question about."""
    other = REQUESTS.alias("other")
    return and_(
        REQUESTS.c.purpose == Purpose.TIE_BREAK.value,
        exists().where(
            other.c.prediction_id == REQUESTS.c.prediction_id,
            other.c.task == REQUESTS.c.task,
            ANSWERS.c.request_id == other.c.request_id,
            ANSWERS.c.reviewer == reviewer,
        ),
    )


def _row(request: LabelRequested) -> dict[str, Any]:
    return {
        "request_id": request.request_id,
        "task": request.task,
        "task_revision": request.task_revision,
        "purpose": request.purpose.value,
        "priority": request.priority,
        "needed": request.overlap,
        "user_hash": request.user_hash,
        "prediction_id": request.prediction_id,
        "cycle_id": request.cycle_id,
        "happened_at": request.happened_at,
        "asked_at": request.occurred_at,
        "request": request.model_dump_json(),
    }


async def _ended(connection: AsyncConnection, requests: Sequence[LabelRequested]) -> dict[str | None, datetime]:
    """Return when the rollouts of these tickets' cycles ended: questions and rollouts arrive on different topics."""
    cycles = {r.cycle_id for r in requests if r.ticket_id is not None and r.cycle_id is not None}
    if not cycles:
        return {}
    query = (
        select(EVENTS.c.cycle_id, func.max(EVENTS.c.occurred_at))
        .where(EVENTS.c.cycle_id.in_(sorted(cycles)), EVENTS.c.topic == _ROLLOUTS)
        .where(EVENTS.c.event["stage"].astext.not_in([stage.value for stage in RUNNING]))
        .group_by(EVENTS.c.cycle_id)
    )
    return {cycle_id: ended_at for cycle_id, ended_at in await connection.execute(query)}
