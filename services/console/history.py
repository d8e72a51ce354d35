"""Stores the history of cycles: results, progress, hourly counts. Every write is idempotent.

All methods raise DependencyUnavailable while the database is unavailable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, ColumnElement, Subquery, Text, and_, cast, func, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.base import Event
from schemas.catalog import topic_of
from schemas.cycles import CycleFinished, CycleStarted, StepProgressed
from schemas.failures import FailuresClustered
from schemas.predictions import PredictionsRolledUp, SubjectForgotten
from schemas.rollouts import RolloutChanged
from schemas.task_settings import RolloutSettings
from schemas.tasks import TaskSpec
from services.console.domain import RUNNING
from services.console.tables import EVENTS, FORGOTTEN, HOURS, PROGRESS
from shared.privacy.erasure import ErasedSubjects, erased_among, record_erasure
from shared.storage.database import transaction

MAX_LOSSES = 200
"""Of a cycle: more than a plot shows."""
_NOT_STORED = {
    "spec": {name: True for name in TaskSpec.model_fields if name not in ("kind", "rollout")}
    | {"rollout": set(RolloutSettings.model_fields) - {"canary_wealth"}}
}


class Losses(NamedTuple):
    """What a training reported at a step. `steps`: of its stage, by which stages are told from each other."""

    steps: float
    step: float
    loss: float | None
    validation: float | None


def stored_event(event: Event) -> Any:
    """Return the JSON that is stored of a step's result: nothing of the task but what a page shows."""
    return _storable(event.model_dump_json(exclude=_NOT_STORED))


def with_loss(losses: Sequence[Losses], event: StepProgressed) -> list[Losses]:
    """Return the losses of a training with those of a report. A training that resumed reports steps again.

    Of more than `MAX_LOSSES` the one goes whose neighbours are the closest; a validation loss only after all others.
    """
    known = {(at.steps, at.step): at for at in losses}
    earlier = known.get((event.total, event.done), Losses(event.total, event.done, None, None))
    is_known = event.validation_loss in {None, *(at.validation for at in losses)}  # All later reports have it, too.
    validation = earlier.validation if is_known else event.validation_loss
    loss = earlier.loss if event.loss is None else event.loss
    if loss is None and validation is None:
        return list(losses)
    known[event.total, event.done] = Losses(event.total, event.done, loss, validation)
    kept = [known[place] for place in sorted(known)]
    if len(kept) > MAX_LOSSES:
        distances = {n: abs(kept[n + 1].step - kept[n - 1].step) for n in range(1, len(kept) - 1)}
        del kept[min(distances, key=lambda n: (kept[n].validation is not None, distances[n]))]
    return kept


class PostgresCycleHistory:
    """The events of cycles, as `{"topic", "occurred_at", "event"}`, oldest first."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add_event(self, event: Event) -> None:
        """Store a step's result without the texts of erased people."""
        async with transaction(self._engine) as connection:
            if isinstance(event, FailuresClustered):
                people = ((event.task, source.user_hash) for mode in event.modes for source in mode.sources)
                event = _without(event, await erased_among(connection, FORGOTTEN, people))
            statement = insert(EVENTS).values(
                event_id=event.event_id,
                task=event.task,
                cycle_id=event.cycle_id,
                topic=topic_of(type(event)).name,
                occurred_at=event.occurred_at,
                event=stored_event(event),
            )
            await connection.execute(statement.on_conflict_do_nothing())

    async def add_progress(self, event: StepProgressed) -> None:
        """Store the newest progress of its cycle, and its loss beside the earlier ones."""
        if event.cycle_id is None:
            return
        is_newer = PROGRESS.c.occurred_at <= event.occurred_at
        losses = with_loss(await self.losses(event.cycle_id), event)
        values = {
            "occurred_at": event.occurred_at,
            "event": _storable(event.model_dump_json()),
            "losses": losses,
        }
        statement = insert(PROGRESS).values(cycle_id=event.cycle_id, **values)
        await self._write(statement.on_conflict_do_update(index_elements=["cycle_id"], set_=values, where=is_newer))

    async def add_hour(self, event: PredictionsRolledUp) -> None:
        """Store the newest counts of an hour, without the answers, which no page shows."""
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
        is_newer = HOURS.c.occurred_at <= event.occurred_at
        await self._write(statement.on_conflict_do_update(index_elements=list(key), set_=values, where=is_newer))

    async def erase(self, event: SubjectForgotten) -> None:
        """Remove a person's texts from the failure modes that quote them."""
        erased = ErasedSubjects({(event.task, event.subject_hash): event.occurred_at})
        async with transaction(self._engine) as connection:
            await record_erasure(connection, FORGOTTEN, event)
            quoting = cast(EVENTS.c.event, Text).contains(event.subject_hash, autoescape=True)
            await _rewrite(connection, event.task, lambda modes: _without(modes, erased), quoting)

    async def drop_before(self, task: str, before: datetime) -> None:
        """Remove texts of predictions made before a moment from the failure modes that quote them."""
        async with transaction(self._engine) as connection:
            await _rewrite(connection, task, lambda event: event.without(lambda source: source.predicted_at < before))

    async def cycles(self, task: str | None, limit: int = 200) -> list[dict[str, Any]]:
        """Return cycles, newest first, with their outcome if they have ended."""
        is_wanted = true() if task is None else EVENTS.c.task == task
        started = select(EVENTS).where(EVENTS.c.topic == topic_of(CycleStarted).name, is_wanted)
        return await self._cycles(started.order_by(EVENTS.c.occurred_at.desc()).limit(limit).subquery("started"))

    async def newest_cycles(self, tasks: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return the newest cycle of each of these tasks that has had one."""
        found = await self._cycles(_newest_of_each(tasks, topic_of(CycleStarted).name))
        return {cycle["task"]: cycle for cycle in found}

    async def _cycles(self, started: Subquery) -> list[dict[str, Any]]:
        """Return the cycles of these `cycles.started`, newest first."""
        finished = EVENTS.alias("finished")
        is_end = and_(finished.c.cycle_id == started.c.cycle_id, finished.c.topic == topic_of(CycleFinished).name)
        query = (
            select(started.c.cycle_id, started.c.task, started.c.occurred_at, started.c.event["trigger"].astext,
                   finished.c.occurred_at, finished.c.event)
            .select_from(started.outerjoin(finished, is_end))
            .order_by(started.c.occurred_at.desc())
        )  # fmt: skip
        async with transaction(self._engine) as connection:
            rows = list(await connection.execute(query))
        return [
            {
                "cycle_id": cycle_id,
                "task": task_name,
                "started_at": started_at,
                "trigger": trigger,
                "finished_at": finished_at,
                "outcome": end["outcome"] if end else None,
                "reason": end["reason"] if end else None,
                "adapter": end["adapter"] if end else None,
            }
            for cycle_id, task_name, started_at, trigger, finished_at, end in rows
        ]

    async def events(self, cycle_id: str) -> list[dict[str, Any]]:
        """Return all events of a cycle."""
        query = select(EVENTS).where(EVENTS.c.cycle_id == cycle_id).order_by(EVENTS.c.occurred_at, EVENTS.c.topic)
        async with transaction(self._engine) as connection:
            rows = list(await connection.execute(query))
        return [{"topic": row.topic, "occurred_at": row.occurred_at, "event": row.event} for row in rows]

    async def progress(self, cycle_id: str) -> dict[str, Any] | None:
        """Return the newest `steps.progressed` of a cycle."""
        async with transaction(self._engine) as connection:
            query = select(PROGRESS.c.event).where(PROGRESS.c.cycle_id == cycle_id)
            return await connection.scalar(query)

    async def losses(self, cycle_id: str) -> list[Losses]:
        """Return the losses that a cycle's training has reported."""
        async with transaction(self._engine) as connection:
            query = select(PROGRESS.c.losses).where(PROGRESS.c.cycle_id == cycle_id)
            return [Losses(*stored) for stored in await connection.scalar(query) or ()]

    async def serving(self, tasks: Collection[str]) -> dict[str, str | None]:
        """Return the adapter that serves each of these tasks that has had a rollout; None: the base model."""
        newest = _newest_of_each(tasks, topic_of(RolloutChanged).name)
        query = select(newest.c.task, newest.c.event["primary_adapter"].astext)
        async with transaction(self._engine) as connection:
            return {task: adapter for task, adapter in await connection.execute(query)}

    async def running_rollout(self, task: str) -> list[dict[str, Any]]:
        """Return all `rollouts.changed` of the candidate that is compared now, oldest first; none if there is none."""
        of_task = and_(EVENTS.c.task == task, EVENTS.c.topic == topic_of(RolloutChanged).name)
        newest = select(EVENTS.c.event).where(of_task).order_by(EVENTS.c.occurred_at.desc()).limit(1)
        async with transaction(self._engine) as connection:
            last = await connection.scalar(newest)
            if last is None or last["stage"] not in RUNNING:
                return []
            same = EVENTS.c.event["rollout_id"].astext == last["rollout_id"]
            query = select(EVENTS.c.event).where(of_task, same).order_by(EVENTS.c.occurred_at)
            return list((await connection.execute(query)).scalars())

    async def predictions_since(self, tasks: Collection[str], start: datetime) -> dict[str, int]:
        """Count the predictions of each of these tasks that has had any in the hours from `start` on."""
        query = select(HOURS.c.task, func.sum(HOURS.c.predictions)).group_by(HOURS.c.task)
        async with transaction(self._engine) as connection:
            rows = await connection.execute(query.where(HOURS.c.task.in_(tasks), HOURS.c.hour >= start))
            return {task: int(count) for task, count in rows}

    async def _write(self, statement: Any) -> None:
        async with transaction(self._engine) as connection:
            await connection.execute(statement)


def _newest_of_each(tasks: Collection[str], topic: str) -> Subquery:
    """Select the newest event of a topic of each task, by a look at the index for each."""
    asked = func.unnest(cast(list(tasks), ARRAY(Text))).table_valued("task", name="asked").render_derived()
    newest = select(EVENTS).where(EVENTS.c.task == asked.c.task, EVENTS.c.topic == topic)
    found = newest.order_by(EVENTS.c.occurred_at.desc()).limit(1).lateral()
    return select(found).select_from(asked.join(found, true())).subquery("newest")


async def _rewrite(
    connection: AsyncConnection,
    task: str,
    change: Callable[[FailuresClustered], FailuresClustered],
    condition: ColumnElement[bool] | None = None,
) -> None:
    """Apply `change` to the task's stored `failures.clustered` events that meet the condition."""
    clustered = (EVENTS.c.task == task, EVENTS.c.topic == topic_of(FailuresClustered).name)
    query = select(EVENTS.c.event_id, EVENTS.c.event).where(*clustered, true() if condition is None else condition)
    rows = await connection.execute(query)
    for event_id, stored in rows.all():
        event = FailuresClustered.model_validate(stored)
        if (changed := change(event)) != event:
            values = {"event": _storable(changed.model_dump_json())}
            await connection.execute(update(EVENTS).where(EVENTS.c.event_id == event_id).values(values))


def _without(event: FailuresClustered, erased: ErasedSubjects) -> FailuresClustered:
    return event.without(lambda source: erased.covers(event.task, source.user_hash, source.predicted_at))


def _storable(event: str) -> Any:
    """Return the event as JSONB can store it: PostgreSQL has no NUL character."""
    return json.loads(event.replace("\\u0000", "\\ufffd"))
