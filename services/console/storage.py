"""The review queue: questions and answers. Every write may be repeated.

All methods raise DependencyUnavailable while the database is away. What happened in cycles is in `chronicle.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from sqlalchemy import Select, and_, delete, exists, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.labels import LabelRequested, Purpose
from services.console.domain import Answer
from services.console.tables import ANSWERS, FORGOTTEN, REQUESTS
from shared.database import transaction

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Queue(Protocol):
    """What reviews need of the storage."""

    async def add_requests(self, requests: Sequence[LabelRequested]) -> None: ...
    async def request(self, request_id: str) -> tuple[LabelRequested, int] | None: ...
    async def answered(self, request_id: str, reviewer: str) -> bool: ...
    async def record(self, request_id: str, reviewer: str, answer: Answer, at: datetime) -> None: ...
    async def tickets(
        self, task: str, revision: str | None, reviewer: str, limit: int, skipped: Collection[str] = ()
    ) -> list[LabelRequested]: ...
    async def others(
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
    async def forget(self, task: str, subject_hash: str, at: datetime) -> None: ...


class PostgresQueue:
    """See `Queue`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add_requests(self, requests: Sequence[LabelRequested]) -> None:
        """Add questions; those known already, and those of people forgotten since, are left out."""
        async with transaction(self._engine) as connection:
            gone = await _forgotten(connection, requests)
            rows = [
                {
                    "request_id": r.request_id,
                    "task": r.task,
                    "task_revision": r.task_revision,
                    "purpose": r.purpose.value,
                    "priority": r.priority,
                    "needed": r.overlap,
                    "user_hash": r.user_hash,
                    "request": r.model_dump_json(),
                }
                for r in requests
                if r.user_hash is None or r.occurred_at > gone.get((r.task, r.user_hash), _LONG_AGO)
            ]
            if rows:
                await connection.execute(insert(REQUESTS).on_conflict_do_nothing(), rows)

    async def request(self, request_id: str) -> tuple[LabelRequested, int] | None:
        """A question, and how many more answers it wants; None: there is no such question."""
        query = select(REQUESTS.c.request, REQUESTS.c.needed).where(REQUESTS.c.request_id == request_id)
        async with transaction(self._engine) as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else (LabelRequested.model_validate_json(row.request), row.needed)

    async def answered(self, request_id: str, reviewer: str) -> bool:
        """Did this reviewer answer this question?"""
        query = select(exists().where(ANSWERS.c.request_id == request_id, ANSWERS.c.reviewer == reviewer))
        async with transaction(self._engine) as connection:
            return bool(await connection.scalar(query))

    async def record(self, request_id: str, reviewer: str, answer: Answer, at: datetime) -> None:
        """Keep the answer; the question wants one less. A second time changes nothing."""
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
                one_less = update(REQUESTS).where(REQUESTS.c.request_id == request_id)
                await connection.execute(one_less.values(needed=func.greatest(REQUESTS.c.needed - 1, 0)))

    async def tickets(
        self, task: str, revision: str | None, reviewer: str, limit: int, skipped: Collection[str] = ()
    ) -> list[LabelRequested]:
        """Discordant pairs, first in first out: which ones are labelled must not depend on what they say."""
        where = REQUESTS.c.purpose == Purpose.DISCORDANT_PAIR.value
        query = _open(task, revision).where(where, _unanswered_by(reviewer))
        return await self._questions(query.order_by(REQUESTS.c.arrived), limit, skipped)

    async def others(
        self,
        task: str,
        revision: str | None,
        reviewer: str,
        limit: int,
        purpose: Purpose | None = None,
        skipped: Collection[str] = (),
    ) -> list[LabelRequested]:
        """All other questions, the most urgent first."""
        where = REQUESTS.c.purpose != Purpose.DISCORDANT_PAIR.value
        if purpose is not None:
            where = REQUESTS.c.purpose == purpose.value
        query = _open(task, revision).where(where, _unanswered_by(reviewer))
        return await self._questions(query.order_by(REQUESTS.c.priority.desc(), REQUESTS.c.arrived), limit, skipped)

    async def open_by_purpose(self, task: str, revision: str | None) -> dict[str, int]:
        """How many questions still want an answer."""
        query = _open(task, revision).with_only_columns(REQUESTS.c.purpose, func.count()).group_by(REQUESTS.c.purpose)
        async with transaction(self._engine) as connection:
            return {purpose: count for purpose, count in await connection.execute(query)}

    async def has_requests(self, task: str) -> bool:
        """Was anything ever asked of this task?"""
        async with transaction(self._engine) as connection:
            return bool(await connection.scalar(select(exists().where(REQUESTS.c.task == task))))

    async def forget(self, task: str, subject_hash: str, at: datetime) -> None:
        """Remove a person's questions with their answers; a replay of older ones does not bring them back."""
        async with transaction(self._engine) as connection:
            statement = insert(FORGOTTEN).values(task=task, subject_hash=subject_hash, at=at)
            newest = func.greatest(FORGOTTEN.c.at, at)
            await connection.execute(
                statement.on_conflict_do_update(index_elements=["task", "subject_hash"], set_={"at": newest})
            )
            theirs = and_(REQUESTS.c.task == task, REQUESTS.c.user_hash == subject_hash)
            await connection.execute(delete(REQUESTS).where(theirs))  # Answers go with it: ON DELETE CASCADE.

    async def _questions(self, query: Select[Any], limit: int, skipped: Collection[str]) -> list[LabelRequested]:
        if skipped:
            query = query.where(REQUESTS.c.request_id.not_in(list(skipped)))
        async with transaction(self._engine) as connection:
            rows = await connection.execute(query.limit(limit))
            return [LabelRequested.model_validate_json(row.request) for row in rows]


def _open(task: str, revision: str | None) -> Select[Any]:
    """Open questions of the task as it is now: answers to an older revision's would be of no use."""
    query = select(REQUESTS.c.request).where(REQUESTS.c.task == task, REQUESTS.c.needed > 0)
    return query if revision is None else query.where(REQUESTS.c.task_revision == revision)


def _unanswered_by(reviewer: str) -> Any:
    return ~exists().where(ANSWERS.c.request_id == REQUESTS.c.request_id, ANSWERS.c.reviewer == reviewer)


async def _forgotten(
    connection: AsyncConnection, requests: Sequence[LabelRequested]
) -> dict[tuple[str, str], datetime]:
    people = {(r.task, r.user_hash) for r in requests if r.user_hash is not None}
    if not people:
        return {}
    query = select(FORGOTTEN).where(tuple_(FORGOTTEN.c.task, FORGOTTEN.c.subject_hash).in_(sorted(people)))
    return {(row.task, row.subject_hash): row.at for row in await connection.execute(query)}
