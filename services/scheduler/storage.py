"""Cycles and scheduled runs, in PostgreSQL schema `scheduler`.

A cycle, and its end, are stored before they are announced: `announced` and `end_announced` are one-row outboxes, so
that a crash between the two loses nothing. An index of the database guarantees that a task has at most one cycle that
has not come to its rollout: candidates are compared while the next one is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, case, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.cycles import CycleFinished, CycleStarted, Step
from schemas.tasks import TaskSpec
from services.scheduler.clients import KafkaAnnouncements
from services.scheduler.domain import Cycle, ScheduledRun, is_later_step
from services.scheduler.tables import CYCLES, OFFSETS, SCHEDULED_RUNS
from shared.kafka.delivery import TopicPartition
from shared.storage.database import transaction
from shared.storage.offsets import advance_offsets, next_offsets


class PostgresCycleStore:
    """Cycles and scheduled runs. Methods raise DependencyUnavailable while the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def start(self, started: CycleStarted, timeout_minutes: int) -> bool:
        """Store a new cycle; False if the task has one before its rollout (or one started in this very second)."""
        statement = insert(CYCLES).values(
            cycle_id=started.cycle_id,
            task=started.task,
            started=started.model_dump(mode="json"),
            announced=False,
            end_announced=True,  # It has none yet.
            timeout_minutes=timeout_minutes,
            step="failures",
            step_since=started.occurred_at,
        )
        new = statement.on_conflict_do_nothing().returning(CYCLES.c.cycle_id)
        return len(await self._read(new)) == 1

    async def save_announced(self, cycle_id: str) -> None:
        """Record that `cycles.started` is on Kafka."""
        await self._write(update(CYCLES).where(CYCLES.c.cycle_id == cycle_id).values(announced=True))

    async def unannounced(self) -> list[CycleStarted]:
        """Return the running cycles whose `cycles.started` may not be on Kafka. One that was stopped need not be."""
        rows = await self._read(select(CYCLES.c.started).where(~CYCLES.c.announced, CYCLES.c.finished.is_(None)))
        return [CycleStarted.model_validate(row.started) for row in rows]

    async def save_end_announced(self, cycle_id: str) -> None:
        """Record that `cycles.finished` is on Kafka."""
        await self._write(update(CYCLES).where(CYCLES.c.cycle_id == cycle_id).values(end_announced=True))

    async def unannounced_ends(self) -> list[CycleFinished]:
        """Return the ends of cycles that may not be on Kafka."""
        rows = await self._read(select(CYCLES.c.finished).where(~CYCLES.c.end_announced))
        return [CycleFinished.model_validate(row.finished) for row in rows]

    async def get(self, cycle_id: str) -> Cycle | None:
        """Return the cycle, running or finished."""
        rows = await self._read(select(CYCLES).where(CYCLES.c.cycle_id == cycle_id))
        return _cycle(rows[0]) if rows else None

    async def running(self) -> list[Cycle]:
        """Return all cycles that are not finished."""
        rows = await self._read(select(CYCLES).where(CYCLES.c.finished.is_(None)).order_by(CYCLES.c.cycle_id))
        return [_cycle(row) for row in rows]

    async def enter_step(self, cycle_id: str, step: Step, at: datetime) -> None:
        """Move the cycle to a later step. The same step again is progress; an earlier one is ignored."""
        async with transaction(self._engine) as connection:
            where = CYCLES.c.cycle_id == cycle_id
            row = (await connection.execute(select(CYCLES.c.step).where(where).with_for_update())).one_or_none()
            if row is None:
                return
            if is_later_step(step, row.step):
                await connection.execute(update(CYCLES).where(where).values(step=step, step_since=at, progress_at=None))
            elif row.step == step:
                await connection.execute(_progress(cycle_id, at))

    async def save_progress(self, cycle_id: str, at: datetime) -> None:
        """Record that the cycle's step made progress at `at`. If it was reported late, it can be reported again."""
        await self._write(_progress(cycle_id, at))

    async def save_late_step(self, cycle_id: str, step: Step) -> None:
        """Record that this step was reported late."""
        await self._write(update(CYCLES).where(CYCLES.c.cycle_id == cycle_id).values(late_step=step))

    async def save_waiting(self, cycle_id: str, waits: bool) -> None:
        """Record whether the cycle's candidate waits for its turn."""
        await self._write(update(CYCLES).where(CYCLES.c.cycle_id == cycle_id).values(waits=waits))

    async def finish(self, finished: CycleFinished) -> bool:
        """End the cycle, once. Return True if what `finished` names ended it, now or at an earlier delivery."""
        end = _end(finished, announced=False)
        async with transaction(self._engine) as connection:
            where = CYCLES.c.cycle_id == finished.cycle_id
            await connection.execute(update(CYCLES).where(where, CYCLES.c.finished.is_(None)).values(end))
            stored = await connection.scalar(select(CYCLES.c.finished_by).where(where))
        return bool(stored == end["finished_by"])

    async def last_run(self, task: str) -> ScheduledRun | None:
        """Return the task's last scheduled run that was decided on."""
        rows = await self._read(select(SCHEDULED_RUNS).where(SCHEDULED_RUNS.c.task == task))
        return ScheduledRun(rows[0].cron, rows[0].considered_at) if rows else None

    async def save_run(self, task: str, run: ScheduledRun) -> None:
        """Store the task's last scheduled run."""
        values = {"cron": run.cron, "considered_at": run.considered_at}
        statement = insert(SCHEDULED_RUNS).values(task=task, **values)
        await self._write(statement.on_conflict_do_update(index_elements=["task"], set_=values))

    async def restore(self, announcements: KafkaAnnouncements) -> None:
        """Store the cycles and ends that were announced and the database lacks: it was restored from a backup.

        Call it at the start, before anything else reads or writes. A cycle's step is not announced: one after which
        another of its task started is in its rollout, else the events that come tell. Raises DependencyUnavailable.
        """
        announced = await announcements.since(self._next_offsets)
        async with transaction(self._engine) as connection:
            for cycle_id, finished in announced.finished.items():
                is_running = (CYCLES.c.cycle_id == cycle_id, CYCLES.c.finished.is_(None))
                await connection.execute(update(CYCLES).where(*is_running).values(_end(finished, announced=True)))
            for started in announced.started:
                await _restore_start(connection, started, announced.finished.get(str(started.cycle_id)))
            await advance_offsets(connection, OFFSETS, announced.read)

    async def _next_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        async with transaction(self._engine) as connection:
            return await next_offsets(connection, OFFSETS, partitions)

    async def _write(self, statement: Any) -> None:
        async with transaction(self._engine) as connection:
            await connection.execute(statement)

    async def _read(self, statement: Any) -> list[Row[Any]]:
        async with transaction(self._engine) as connection:
            return list(await connection.execute(statement))


async def _restore_start(connection: AsyncConnection, started: CycleStarted, finished: CycleFinished | None) -> None:
    known = select(CYCLES.c.cycle_id).where(CYCLES.c.cycle_id == started.cycle_id)
    if (await connection.execute(known)).first() is not None:
        return
    at = started.occurred_at
    before = (CYCLES.c.task == started.task, CYCLES.c.finished.is_(None), CYCLES.c.step != "rollout")
    await connection.execute(update(CYCLES).where(*before).values(step="rollout", step_since=at, progress_at=None))
    values = {
        "cycle_id": started.cycle_id, "task": started.task, "started": started.model_dump(mode="json"),
        "announced": True, "end_announced": True, "step": "failures", "step_since": at,
        "timeout_minutes": TaskSpec.model_fields["step_timeout_minutes"].default,
    }  # fmt: skip
    await connection.execute(insert(CYCLES).values(values | (_end(finished, announced=True) if finished else {})))
    considered_before = (SCHEDULED_RUNS.c.task == started.task, SCHEDULED_RUNS.c.considered_at < at)
    await connection.execute(update(SCHEDULED_RUNS).where(*considered_before).values(considered_at=at))


def _end(finished: CycleFinished, *, announced: bool) -> dict[str, Any]:
    """The columns of an end. No event ended what an operator did: then it is the end's own, whose id is the cycle's."""
    ended_by = finished.ended_by or finished.event_id
    return {"finished": finished.model_dump(mode="json"), "finished_by": ended_by, "end_announced": announced}


def _progress(cycle_id: str, at: datetime) -> Any:
    newest = func.greatest(CYCLES.c.progress_at, at)  # It ignores NULL.
    is_new = at > func.greatest(CYCLES.c.step_since, CYCLES.c.progress_at)  # A redelivered one ends no silence.
    late_step = case((is_new, None), else_=CYCLES.c.late_step)
    return update(CYCLES).where(CYCLES.c.cycle_id == cycle_id).values(progress_at=newest, late_step=late_step)


def _cycle(row: Row[Any]) -> Cycle:
    return Cycle(
        started=CycleStarted.model_validate(row.started),
        step=row.step,
        step_since=row.step_since,
        progress_at=row.progress_at,
        late_step=row.late_step,
        timeout_minutes=row.timeout_minutes,
        waits=row.waits,
    )
