"""Cycles and turns, in PostgreSQL schema `scheduler`.

A cycle is noted before it is announced: `announced` is a one-row outbox, so that a crash between the two loses
nothing. That a task has one running cycle is the database's promise, not ours.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import Boolean, Column, DateTime, Integer, MetaData, Row, Table, Text, Uuid, func, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.cycles import CycleFinished, CycleStarted, Step
from services.scheduler.domain import Cycle, Turn, further
from shared.storage.database import transaction

METADATA = MetaData()
_TIME = DateTime(timezone=True)
CYCLES = Table(
    "cycles",
    METADATA,
    Column("cycle_id", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("started", JSONB, nullable=False),
    Column("announced", Boolean, nullable=False),
    Column("timeout_minutes", Integer, nullable=False),
    Column("step", Text, nullable=False),
    Column("step_since", _TIME, nullable=False),
    Column("progress_at", _TIME),
    Column("late_step", Text),
    Column("finished", JSONB),
    Column("finished_by", Uuid),
)
TURNS = Table(
    "turns",
    METADATA,
    Column("task", Text, primary_key=True),
    Column("cron", Text, nullable=False),
    Column("considered_at", _TIME, nullable=False),
)


class Storage(Protocol):
    """What the scheduler remembers. Methods raise DependencyUnavailable while the database is away."""

    async def start(self, started: CycleStarted, timeout_minutes: int) -> bool: ...
    async def announced(self, cycle_id: str) -> None: ...
    async def unannounced(self) -> list[CycleStarted]: ...
    async def get(self, cycle_id: str) -> Cycle | None: ...
    async def running(self) -> list[Cycle]: ...
    async def enter(self, cycle_id: str, step: Step, at: datetime) -> None: ...
    async def progressed(self, cycle_id: str, at: datetime) -> None: ...
    async def late(self, cycle_id: str, step: Step) -> None: ...
    async def finish(self, finished: CycleFinished, by: UUID) -> bool: ...
    async def turn(self, task: str) -> Turn | None: ...
    async def considered(self, task: str, turn: Turn) -> None: ...


class PostgresStorage:
    """See `Storage`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def close(self) -> None:
        await self._engine.dispose()

    async def start(self, started: CycleStarted, timeout_minutes: int) -> bool:
        """Note a new cycle; False if the task has one running (or one of this very second)."""
        statement = insert(CYCLES).values(
            cycle_id=started.cycle_id,
            task=started.task,
            started=started.model_dump(mode="json"),
            announced=False,
            timeout_minutes=timeout_minutes,
            step="failures",
            step_since=started.occurred_at,
        )
        new = statement.on_conflict_do_nothing().returning(CYCLES.c.cycle_id)
        return len(await self._read(new)) == 1

    async def announced(self, cycle_id: str) -> None:
        """`cycles.started` is on Kafka."""
        await self._write(update(CYCLES).where(CYCLES.c.cycle_id == cycle_id).values(announced=True))

    async def unannounced(self) -> list[CycleStarted]:
        """Cycles that were noted, but whose event may not be on Kafka."""
        rows = await self._read(select(CYCLES.c.started).where(~CYCLES.c.announced))
        return [CycleStarted.model_validate(row.started) for row in rows]

    async def get(self, cycle_id: str) -> Cycle | None:
        """The cycle, running or finished."""
        rows = await self._read(select(CYCLES).where(CYCLES.c.cycle_id == cycle_id))
        return _cycle(rows[0]) if rows else None

    async def running(self) -> list[Cycle]:
        """All cycles that are not finished."""
        rows = await self._read(select(CYCLES).where(CYCLES.c.finished.is_(None)).order_by(CYCLES.c.cycle_id))
        return [_cycle(row) for row in rows]

    async def enter(self, cycle_id: str, step: Step, at: datetime) -> None:
        """The cycle is in `step` since `at`; no step back. In the same step it is a sign of life."""
        async with transaction(self._engine) as connection:
            where = CYCLES.c.cycle_id == cycle_id
            row = (await connection.execute(select(CYCLES.c.step).where(where).with_for_update())).one_or_none()
            if row is None:
                return
            if further(step, row.step):
                await connection.execute(update(CYCLES).where(where).values(step=step, step_since=at, progress_at=None))
            elif row.step == step:
                await connection.execute(_sign_of_life(cycle_id, at))

    async def progressed(self, cycle_id: str, at: datetime) -> None:
        """A sign of life at `at`."""
        await self._write(_sign_of_life(cycle_id, at))

    async def late(self, cycle_id: str, step: Step) -> None:
        """It was said that this step is late."""
        await self._write(update(CYCLES).where(CYCLES.c.cycle_id == cycle_id).values(late_step=step))

    async def finish(self, finished: CycleFinished, by: UUID) -> bool:
        """End the cycle, once. True if it was event `by` that ended it, now or at an earlier delivery."""
        async with transaction(self._engine) as connection:
            where = CYCLES.c.cycle_id == finished.cycle_id
            await connection.execute(
                update(CYCLES)
                .where(where, CYCLES.c.finished.is_(None))
                .values(finished=finished.model_dump(mode="json"), finished_by=by)
            )
            return await connection.scalar(select(CYCLES.c.finished_by).where(where)) == by

    async def turn(self, task: str) -> Turn | None:
        """The last turn that was considered."""
        rows = await self._read(select(TURNS).where(TURNS.c.task == task))
        return Turn(rows[0].cron, rows[0].considered_at) if rows else None

    async def considered(self, task: str, turn: Turn) -> None:
        """Remember a turn."""
        values = {"cron": turn.cron, "considered_at": turn.considered_at}
        statement = insert(TURNS).values(task=task, **values)
        await self._write(statement.on_conflict_do_update(index_elements=["task"], set_=values))

    async def _write(self, statement: Any) -> None:
        async with transaction(self._engine) as connection:
            await connection.execute(statement)

    async def _read(self, statement: Any) -> list[Row[Any]]:
        async with transaction(self._engine) as connection:
            return list(await connection.execute(statement))


def _sign_of_life(cycle_id: str, at: datetime) -> Any:
    newest = func.greatest(func.coalesce(CYCLES.c.progress_at, at), at)
    return update(CYCLES).where(CYCLES.c.cycle_id == cycle_id).values(progress_at=newest)


def _cycle(row: Row[Any]) -> Cycle:
    return Cycle(
        started=CycleStarted.model_validate(row.started),
        step=row.step,
        step_since=row.step_since,
        progress_at=row.progress_at,
        late_step=row.late_step,
        timeout_minutes=row.timeout_minutes,
    )
