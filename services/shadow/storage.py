"""What shadow decided and spent, in PostgreSQL schema `shadow`: counts and ids, no texts; and who is forgotten.

A decision and what it spends are one transaction, and it is stored by the record's position, so that a redelivered
request is decided, paid and counted once, also across restarts. Only the last decisions of a partition are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.predictions import SubjectForgotten
from services.shadow.budget import Considered, Spending
from services.shadow.domain import Outcome
from services.shadow.tables import BACKLOGS, DAYS, DECISIONS, FORGOTTEN, HOURS, MINUTES, OUTCOMES
from shared.privacy.erasure import erased_among, record_erasure
from shared.storage.database import transaction
from shared.storage.held_locks import held_by, raise_if_lost

_LOCK = sa.func.hashtext(sa.literal("deciding ") + sa.func.current_schema())
_NOT_LOCKED = "55P03"
"""PostgreSQL's error where a lock was not had in time."""
_REMEMBERED = 1_000
"""Offsets of a partition: more than a batch has, fewer than what somebody rewinds on purpose."""
_KEPT_DAYS = 8
"""Older requests are not replayed."""

_OF_ROLLOUT = (BACKLOGS.c.task, BACKLOGS.c.rollout_id)
_OPEN = (DECISIONS.c.task, DECISIONS.c.rollout_id)
_NUMBERS = sa.union_all(
    sa.select(OUTCOMES.c.task, OUTCOMES.c.rollout_id, OUTCOMES.c.outcome.label("name"), OUTCOMES.c.requests),
    sa.select(*_OPEN, sa.literal("waiting"), sa.func.count()).where(DECISIONS.c.outcome.is_(None)).group_by(*_OPEN),
    sa.select(
        *_OF_ROLLOUT, sa.literal("backlog"), sa.func.sum(BACKLOGS.c.end_offset - BACKLOGS.c.next_offset)
    ).group_by(*_OF_ROLLOUT),
).order_by("task", "rollout_id")
"""Requests by task, rollout and what became of them."""


@dataclass(frozen=True)
class ReplayBacklog:
    """The records of a partition that are to be read again for a rollout: from `next_offset` up to `end_offset`."""

    rollout_id: str
    task: str
    partition: int
    next_offset: int
    end_offset: int


@dataclass
class Summary:
    """What became of a rollout's requests, as an operator sees it: outcome, `waiting` or `backlog` → requests."""

    task: str
    rollout_id: str
    tokens_today: int = 0
    requests: dict[str, int] = field(default_factory=dict)


class PostgresDecisions:
    """What was decided, and what was left for later.

    One transaction decides whether a request waits, and for how much it is paid. Methods raise DependencyUnavailable
    while the database is away.
    """

    def __init__(self, engine: AsyncEngine, concurrency: int) -> None:
        """`concurrency`: see `Spending`."""
        self._engine = engine
        self._concurrency = concurrency

    async def decide(self, requests: Sequence[Considered], now: datetime) -> list[Considered]:
        """Decide about the requests of a batch, in their order. Return those to replay: not those already finished.

        While a rollout has a backlog in a partition, its newer requests there join it, so that each is decided once. So
        does what was to be replayed when the flag was turned off. What a person asked who is erased by now is left out,
        also where it was to be replayed.
        """
        async with self._locked() as connection:
            requests = await _without_erased(connection, requests)
            known = await _known(connection, requests)
            new = [request for request in requests if request.position not in known]
            if new:
                later = await _defer(connection, new)
                now_decided = [request for request in new if request.position not in later]
                spending = await _spending(connection, new, now, self._concurrency)
                outcomes = spending.decide(now_decided)
                decided: dict[tuple[int, int], Outcome | None] = dict.fromkeys(later, Outcome.DEFERRED)
                decided |= dict(zip((request.position for request in now_decided), outcomes, strict=True))
                await _save_decisions(connection, new, decided)
                await _save_spending(connection, spending)
                await _count(connection, [(r, o) for r, o in zip(now_decided, outcomes, strict=True) if o is not None])
                known |= decided
        return [request for request in requests if known[request.position] is None]

    async def forget(self, event: SubjectForgotten) -> None:
        """Replay no more of what a person asked until their request."""
        async with transaction(self._engine) as connection:
            await record_erasure(connection, FORGOTTEN, event)

    async def backlogs(self) -> list[ReplayBacklog]:
        """Return all backlogs."""
        query = sa.select(BACKLOGS).order_by(BACKLOGS.c.rollout_id, BACKLOGS.c.partition)
        async with transaction(self._engine) as connection:
            return [_backlog(row) for row in await connection.execute(query)]

    @asynccontextmanager
    async def claimed(self, backlog: ReplayBacklog) -> AsyncIterator[ReplayBacklog | None]:
        """Hold a backlog, and give what it is now; None: another process has it."""
        async with transaction(self._engine) as connection:
            key = _lock_key(f"backlog {backlog.rollout_id} {backlog.partition} ")
            is_ours = await connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(key)))
            yield await self._current(backlog) if is_ours else None

    @asynccontextmanager
    async def claimed_task(self, task: str, seconds: float) -> AsyncIterator[bool]:
        """Hold the replays of a task against all others of the service, and give True; False: others have had them for
        so long.

        A batch of a task begins once the pairs of the one before it are published, whichever processes have their
        partitions or backlogs. Side by side a fast answer of the candidate would be its subject's first pair, and bet,
        before one that timed out: with 5 % of subjects so, 9 % of years promoted an equal candidate. And after a
        rebalance two processes would ask the same requests: of two answers the faster one would count.
        """
        async with transaction(self._engine) as connection:
            if not await _lock(connection, f"replays of {task} ", seconds):
                yield False
                return
            async with held_by(connection):
                yield True

    async def confirm_claim(self) -> None:
        """Raise DependencyUnavailable where this code had claimed a task and its connection broke since.

        Called before each pair is published: what it replays by then is another process's, or will be.
        """
        async with transaction(self._engine) as connection:
            await raise_if_lost(connection)

    async def _current(self, backlog: ReplayBacklog) -> ReplayBacklog | None:
        async with transaction(self._engine) as connection:
            row = (await connection.execute(sa.select(BACKLOGS).where(_is(backlog)))).one_or_none()
        return None if row is None else _backlog(row)

    async def advance(self, backlog: ReplayBacklog, next_offset: int) -> ReplayBacklog | None:
        """Store that a backlog's records below `next_offset` are done. Return what is left of it, None: nothing.

        Where it begins elsewhere by now, that stays: an earlier request has joined it, or another process works it off,
        since the claim was lost.
        """
        is_same = sa.and_(_is(backlog), BACKLOGS.c.next_offset == backlog.next_offset)
        async with self._locked() as connection:
            await connection.execute(sa.update(BACKLOGS).where(is_same).values(next_offset=next_offset))
            row = (await connection.execute(sa.select(BACKLOGS).where(_is(backlog)))).one_or_none()
            if row is None or row.next_offset < row.end_offset:
                return None if row is None else _backlog(row)
            await connection.execute(sa.delete(BACKLOGS).where(_is(backlog)))
            return None

    async def drop(self, backlog: ReplayBacklog) -> None:
        """Forget a backlog that nobody needs any more, and what was decided of it: else it would wait for ever."""
        of_backlog = sa.and_(
            DECISIONS.c.from_backlog,
            DECISIONS.c.rollout_id == backlog.rollout_id,
            DECISIONS.c.partition == backlog.partition,
        )
        async with self._locked() as connection:
            await connection.execute(sa.delete(BACKLOGS).where(_is(backlog)))
            await connection.execute(sa.delete(DECISIONS).where(of_backlog))

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction that no other process of the service can overlap: they share budgets and backlogs."""
        async with transaction(self._engine) as connection:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield connection

    async def finish(self, request: Considered, outcome: Outcome) -> None:
        """Record what became of a request that was to be replayed. Idempotent."""
        open_decision = (
            sa.update(DECISIONS)
            .where(
                DECISIONS.c.from_backlog == request.from_backlog,
                DECISIONS.c.partition == request.delivery.partition,
                DECISIONS.c.record_offset == request.delivery.offset,
                DECISIONS.c.request_id == request.delivery.event.request_id,
                DECISIONS.c.rollout_id == request.rollout.rollout_id,
                DECISIONS.c.outcome.is_(None),
            )
            .values(outcome=outcome)
        )
        async with transaction(self._engine) as connection:
            if (await connection.execute(open_decision)).rowcount:
                await _count(connection, [(request, outcome)])

    async def summaries(self, now: datetime) -> list[Summary]:
        """Return what became of each rollout's requests, by task."""
        of_tasks = sa.select(DAYS.c.task, DAYS.c.tokens).where(DAYS.c.day == now.astimezone(UTC).date())
        async with transaction(self._engine) as connection:
            tokens: dict[str, int] = {row.task: row.tokens for row in await connection.execute(of_tasks)}
            found: dict[str, Summary] = {}
            for row in await connection.execute(_NUMBERS):
                summary = Summary(row.task, row.rollout_id, tokens.get(row.task, 0))
                found.setdefault(row.rollout_id, summary).requests[row.name] = int(row.requests)
            return list(found.values())


async def _lock(connection: AsyncConnection, name: str, seconds: float) -> bool:
    """Wait for the lock and return True; False: not within so many seconds."""
    try:
        async with connection.begin_nested():
            limit = f"{max(1, round(1_000 * seconds))}ms"
            await connection.execute(sa.select(sa.func.set_config("lock_timeout", limit, sa.true())))
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_lock_key(name))))
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _NOT_LOCKED:
            raise
        return False
    return True


def _lock_key(name: str) -> sa.ColumnElement[int]:
    return sa.func.hashtext(sa.literal(name) + sa.func.current_schema())


async def _without_erased(connection: AsyncConnection, requests: Sequence[Considered]) -> list[Considered]:
    """Return the requests; those of erased people with that as the reason why they are left out."""
    people = [(request.rollout.task, request.delivery.event.user_hash) for request in requests]
    erased = await erased_among(connection, FORGOTTEN, people)
    return [
        replace(request, left_out=Outcome.FORGOTTEN)
        if erased.covers(task, user_hash, request.delivery.event.occurred_at)
        else request
        for request, (task, user_hash) in zip(requests, people, strict=True)
    ]


async def _known(connection: AsyncConnection, requests: Sequence[Considered]) -> dict[tuple[int, int], Outcome | None]:
    """Return what was decided before, and holds.

    New is another request at the offset (topics made anew), another rollout, and what is not replayed yet when the flag
    is off.
    """
    columns = DECISIONS.c
    query = sa.select(DECISIONS).where(
        sa.tuple_(columns.from_backlog, columns.partition, columns.record_offset).in_(map(_key, requests))
    )
    rows = {(row.from_backlog, row.partition, row.record_offset): row for row in await connection.execute(query)}
    return {
        request.position: None if row.outcome is None else Outcome(row.outcome)
        for request in requests
        if (row := rows.get(_key(request))) is not None
        and not (row.outcome is None and request.is_put_off)
        and (row.request_id, row.rollout_id) == (request.delivery.event.request_id, request.rollout.rollout_id)
    }


def _key(request: Considered) -> tuple[bool, int, int]:
    return request.from_backlog, *request.position


async def _defer(connection: AsyncConnection, requests: Sequence[Considered]) -> set[tuple[int, int]]:
    """Add to the backlogs what belongs there, and return its positions."""
    behind = {(row.rollout_id, row.partition): _backlog(row) for row in await connection.execute(sa.select(BACKLOGS))}
    later = set()
    for request in requests:
        at, offset = (request.rollout.rollout_id, request.delivery.partition), request.delivery.offset
        if request.from_backlog or not (request.is_put_off or at in behind):
            continue
        former = behind.get(at) or ReplayBacklog(at[0], request.rollout.task, at[1], offset, offset + 1)
        behind[at] = replace(
            former, next_offset=min(former.next_offset, offset), end_offset=max(former.end_offset, offset + 1)
        )
        later.add(request.position)
    if later:
        await _upsert(connection, BACKLOGS, [asdict(backlog) for backlog in behind.values()])
    return later


def _backlog(row: Any) -> ReplayBacklog:
    return ReplayBacklog(row.rollout_id, row.task, row.partition, row.next_offset, row.end_offset)


def _is(backlog: ReplayBacklog) -> Any:
    return sa.and_(BACKLOGS.c.rollout_id == backlog.rollout_id, BACKLOGS.c.partition == backlog.partition)


async def _spending(
    connection: AsyncConnection, requests: Sequence[Considered], now: datetime, concurrency: int
) -> Spending:
    today = now.astimezone(UTC).date()
    tasks = sorted({request.rollout.task for request in requests})
    of_minutes = sa.select(MINUTES).where(
        MINUTES.c.task.in_(tasks), MINUTES.c.minute.in_({request.minute for request in requests})
    )
    of_hours = sa.select(HOURS).where(HOURS.c.task.in_(tasks), HOURS.c.hour.in_({request.hour for request in requests}))
    of_day = sa.select(DAYS).where(DAYS.c.task.in_(tasks), DAYS.c.day == today)
    return Spending(
        today,
        concurrency,
        {(row.task, row.minute): row.requests for row in await connection.execute(of_minutes)},
        {(row.task, row.hour): row.busy_ms for row in await connection.execute(of_hours)},
        {row.task: row.tokens for row in await connection.execute(of_day)},
    )


async def _save_decisions(
    connection: AsyncConnection, requests: Sequence[Considered], decided: Mapping[tuple[int, int], Outcome | None]
) -> None:
    rows = [
        {
            "from_backlog": request.from_backlog, "partition": request.delivery.partition,
            "record_offset": request.delivery.offset, "request_id": request.delivery.event.request_id,
            "rollout_id": request.rollout.rollout_id, "task": request.rollout.task,
            "outcome": decided[request.position],
        }
        for request in requests
    ]  # fmt: skip
    await _upsert(connection, DECISIONS, rows)
    # Each rollout reads its own backlog, all of them the partitions.
    firsts: dict[tuple[str | None, int], int] = {}
    for request in requests:
        key = (request.rollout.rollout_id if request.from_backlog else None, request.delivery.partition)
        firsts[key] = min(firsts.get(key, request.delivery.offset), request.delivery.offset)
    for (backlog_of, number), first in firsts.items():
        of_all = DECISIONS.c.from_backlog.is_(False)
        of_this = sa.and_(DECISIONS.c.from_backlog, DECISIONS.c.rollout_id == backlog_of)
        old = sa.and_(DECISIONS.c.partition == number, DECISIONS.c.record_offset < first - _REMEMBERED)
        await connection.execute(sa.delete(DECISIONS).where(old, of_all if backlog_of is None else of_this))


async def _save_spending(connection: AsyncConnection, spending: Spending) -> None:
    minutes = [
        {"task": task, "minute": minute, "requests": requests} for (task, minute), requests in spending.requests.items()
    ]
    hours = [{"task": task, "hour": hour, "busy_ms": busy_ms} for (task, hour), busy_ms in spending.busy_ms.items()]
    days = [{"task": task, "day": spending.day, "tokens": tokens} for task, tokens in spending.tokens.items()]
    await _upsert(connection, MINUTES, minutes)
    await _upsert(connection, HOURS, hours)
    await _upsert(connection, DAYS, days)
    tasks, oldest = list(spending.tokens), spending.day - timedelta(days=_KEPT_DAYS)
    await connection.execute(sa.delete(DAYS).where(DAYS.c.task.in_(tasks), DAYS.c.day < oldest))
    await connection.execute(sa.delete(MINUTES).where(MINUTES.c.task.in_(tasks), MINUTES.c.minute < oldest))
    await connection.execute(sa.delete(HOURS).where(HOURS.c.task.in_(tasks), HOURS.c.hour < oldest))


async def _count(connection: AsyncConnection, finished: Sequence[tuple[Considered, Outcome]]) -> None:
    counts = Counter((request.rollout.rollout_id, outcome, request.rollout.task) for request, outcome in finished)
    rows = [
        {"rollout_id": rollout_id, "outcome": outcome, "task": task, "requests": number}
        for (rollout_id, outcome, task), number in sorted(counts.items())
    ]
    await _upsert(connection, OUTCOMES, rows, adding=True)


async def _upsert(
    connection: AsyncConnection, table: sa.Table, rows: Sequence[Mapping[str, Any]], *, adding: bool = False
) -> None:
    """Insert rows, or overwrite those with the same key; `adding`: add to their number of requests instead."""
    if not rows:
        return
    statement = insert(table)
    new = statement.excluded
    if adding:
        values = {"requests": table.c.requests + new.requests}
    else:
        values = {column.name: new[column.name] for column in table.columns if not column.primary_key}
    # Row by row, in one round trip: a statement of all rows would be compiled anew for each number of them.
    upsert = statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=values)
    await connection.execute(upsert, [dict(row) for row in rows])
