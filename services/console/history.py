"""What happened in cycles: results, progress, hourly counts. Every write may be repeated.

All methods raise DependencyUnavailable while the database is away.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Text, and_, cast, func, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.base import Event
from schemas.catalog import topic_of
from schemas.cycles import StepProgressed
from schemas.failures import FailuresClustered
from schemas.predictions import PredictionsRolledUp, SubjectForgotten
from services.console.tables import EVENTS, FORGOTTEN, HOURS, PROGRESS
from shared.privacy.erasure import ErasedSubjects, erased_among, record_erasure
from shared.storage.database import transaction


class CycleHistory(Protocol):
    """What the cycle pages need of the storage. Facts are `{"topic", "occurred_at", "event"}`, oldest first."""

    async def add_event(self, event: Event) -> None: ...
    async def add_progress(self, event: StepProgressed) -> None: ...
    async def add_hour(self, event: PredictionsRolledUp) -> None: ...
    async def forget(self, event: SubjectForgotten) -> None: ...
    async def expire(self, task: str, before: datetime) -> None: ...
    async def cycles(self, task: str | None, limit: int = 200) -> list[dict[str, Any]]: ...
    async def events(self, cycle_id: str) -> list[dict[str, Any]]: ...
    async def progress(self, cycle_id: str) -> dict[str, Any] | None: ...
    async def serving(self, task: str) -> dict[str, Any] | None: ...
    async def predictions_since(self, task: str, start: datetime) -> int: ...


class PostgresCycleHistory:
    """See `CycleHistory`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add_event(self, event: Event) -> None:
        """Keep a step's result, without the task's definition that travels in it and without forgotten people."""
        async with transaction(self._engine) as connection:
            if isinstance(event, FailuresClustered):
                quoted = ((event.task, source.user_hash) for mode in event.modes for source in mode.sources)
                event = _without(event, await erased_among(connection, FORGOTTEN, quoted))
            statement = insert(EVENTS).values(
                event_id=event.event_id,
                task=event.task,
                cycle_id=event.cycle_id,
                topic=topic_of(type(event)).name,
                occurred_at=event.occurred_at,
                event=_storable(event.model_dump_json(exclude={"spec"})),
            )
            await connection.execute(statement.on_conflict_do_nothing())

    async def add_progress(self, event: StepProgressed) -> None:
        """Keep the newest progress of its cycle."""
        if event.cycle_id is None:
            return
        values = {"occurred_at": event.occurred_at, "event": _storable(event.model_dump_json())}
        statement = insert(PROGRESS).values(cycle_id=event.cycle_id, **values)
        older = PROGRESS.c.occurred_at <= event.occurred_at
        await self._write(statement.on_conflict_do_update(index_elements=["cycle_id"], set_=values, where=older))

    async def add_hour(self, event: PredictionsRolledUp) -> None:
        """Keep the newest counts of an hour, not the answers themselves: nobody is shown them."""
        key = {
            "task": event.task,
            "task_revision": event.task_revision,
            "hour": event.hour,
            "variant": event.variant.value,
            "adapter": event.adapter or "",
        }
        values = {
            "occurred_at": event.occurred_at,
            "predictions": event.predictions,
            "event": _storable(event.model_dump_json(exclude={"answers"})),
        }
        statement = insert(HOURS).values(**key, **values)
        older = HOURS.c.occurred_at <= event.occurred_at
        await self._write(statement.on_conflict_do_update(index_elements=list(key), set_=values, where=older))

    async def forget(self, event: SubjectForgotten) -> None:
        """Take what a person asked out of the failure modes that quote it."""
        gone = ErasedSubjects({(event.task, event.subject_hash): event.occurred_at})
        async with transaction(self._engine) as connection:
            await record_erasure(connection, FORGOTTEN, event)
            quoting = cast(EVENTS.c.event, Text).contains(event.subject_hash, autoescape=True)
            await _rewrite(connection, event.task, lambda clustered: _without(clustered, gone), quoting)

    async def expire(self, task: str, before: datetime) -> None:
        """Take out of the failure modes what they quote from before a moment."""
        async with transaction(self._engine) as connection:
            await _rewrite(connection, task, lambda clustered: clustered.without(lambda s: s.predicted_at < before))

    async def cycles(self, task: str | None, limit: int = 200) -> list[dict[str, Any]]:
        """Cycles, newest first: where each stands or how it ended."""
        started, finished = EVENTS.alias("started"), EVENTS.alias("finished")
        joined = started.outerjoin(
            finished, and_(finished.c.cycle_id == started.c.cycle_id, finished.c.topic == "cycles.finished.v1")
        )
        query = (
            select(started.c.cycle_id, started.c.task, started.c.occurred_at, started.c.event["trigger"].astext,
                   finished.c.occurred_at, finished.c.event)
            .select_from(joined)
            .where(started.c.topic == "cycles.started.v1", true() if task is None else started.c.task == task)
            .order_by(started.c.occurred_at.desc())
            .limit(limit)
        )  # fmt: skip
        async with transaction(self._engine) as connection:
            rows = list(await connection.execute(query))
        return [
            {
                "cycle_id": cycle_id,
                "task": name,
                "started_at": at,
                "trigger": trigger,
                "finished_at": until,
                "outcome": end["outcome"] if end else None,
                "reason": end["reason"] if end else None,
                "adapter": end["adapter"] if end else None,
            }
            for cycle_id, name, at, trigger, until, end in rows
        ]

    async def events(self, cycle_id: str) -> list[dict[str, Any]]:
        """All that happened in a cycle."""
        query = select(EVENTS).where(EVENTS.c.cycle_id == cycle_id).order_by(EVENTS.c.occurred_at, EVENTS.c.topic)
        async with transaction(self._engine) as connection:
            rows = list(await connection.execute(query))
        return [{"topic": row.topic, "occurred_at": row.occurred_at, "event": row.event} for row in rows]

    async def progress(self, cycle_id: str) -> dict[str, Any] | None:
        """The newest `steps.progressed` of a cycle."""
        async with transaction(self._engine) as connection:
            query = select(PROGRESS.c.event).where(PROGRESS.c.cycle_id == cycle_id)
            return await connection.scalar(query)

    async def serving(self, task: str) -> dict[str, Any] | None:
        """The newest `rollouts.changed` of a task: who serves."""
        query = select(EVENTS.c.event).where(EVENTS.c.task == task, EVENTS.c.topic == "rollouts.changed.v1")
        async with transaction(self._engine) as connection:
            newest = query.order_by(EVENTS.c.occurred_at.desc()).limit(1)
            return await connection.scalar(newest)

    async def predictions_since(self, task: str, start: datetime) -> int:
        """Predictions in the hours from `start` on."""
        query = select(func.coalesce(func.sum(HOURS.c.predictions), 0))
        async with transaction(self._engine) as connection:
            return int(await connection.scalar(query.where(HOURS.c.task == task, HOURS.c.hour >= start)) or 0)

    async def _write(self, statement: Any) -> None:
        async with transaction(self._engine) as connection:
            await connection.execute(statement)


async def _rewrite(
    connection: AsyncConnection,
    task: str,
    change: Callable[[FailuresClustered], FailuresClustered],
    which: ColumnElement[bool] | None = None,
) -> None:
    """Store the task's clusterings, or only some, as `change` makes them."""
    clustered = (EVENTS.c.task == task, EVENTS.c.topic == topic_of(FailuresClustered).name)
    query = select(EVENTS.c.event_id, EVENTS.c.event).where(*clustered, true() if which is None else which)
    rows = await connection.execute(query)
    for event_id, stored in rows.all():
        before = FailuresClustered.model_validate(stored)
        if (kept := change(before)) != before:
            values = {"event": _storable(kept.model_dump_json())}
            await connection.execute(update(EVENTS).where(EVENTS.c.event_id == event_id).values(values))


def _without(event: FailuresClustered, gone: ErasedSubjects) -> FailuresClustered:
    return event.without(lambda source: gone.covers(event.task, source.user_hash, source.predicted_at))


def _storable(event: str) -> Any:
    """The event as JSONB can hold it: PostgreSQL has no NUL character."""
    return json.loads(event.replace("\\u0000", "\\ufffd"))
