"""Rollouts in PostgreSQL.

A change of a rollout is saved as unsettled, then its flags are set and its event is published, then it is settled.
Any process that finds an unsettled change finishes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.adapters import AdapterEvaluated
from schemas.base import utc_now
from schemas.rollouts import Evidence, Stage
from schemas.tasks import TaskSpec
from services.deployer.rollout import ACTIVE, Move, Position, Rollout, has_proven, rollout_id
from services.deployer.statistics.levels import Draw
from services.deployer.statistics.non_inferiority import Promotion
from services.deployer.storage import canaries
from services.deployer.storage.task_locks import task_lock, writing
from services.deployer.tables import LEDGER, MOVES, ROLLOUTS
from shared.storage.database import transaction

HAS_ENTERED = ROLLOUTS.c.entered_at.is_not(None)
IS_GUARDED = sa.and_(
    HAS_ENTERED,
    sa.or_(
        ROLLOUTS.c.stage == Stage.CANARY.value,
        sa.and_(ROLLOUTS.c.stage == Stage.PROMOTED.value, sa.or_(~ROLLOUTS.c.settled, ROLLOUTS.c.control)),
    ),
)
IS_ACTIVE = sa.and_(HAS_ENTERED, ROLLOUTS.c.stage.in_(ACTIVE))
_SELECT_MOVES = sa.select(*[MOVES.c[field.name] for field in dataclasses.fields(Move)])
_FIELDS = [field.name for field in dataclasses.fields(Rollout)]


@dataclasses.dataclass(frozen=True)
class TaskAdapters:
    """The adapters that a task needs served. `candidate`: while it is compared, or its end is not settled.

    `replaced`: `previous` of the primary's flag for as long as a change that gives it another is not settled.
    """

    primary: str | None
    candidate: str | None
    previous: str | None
    replaced: str | None = None


class RolloutStore(Protocol):
    """The rollouts of all tasks. Change those of a task, and its ledgers, only inside `locked(task)`."""

    def locked(self, task: str) -> AbstractAsyncContextManager[None]: ...
    async def get(self, rollout_id: str) -> Rollout | None: ...
    async def last_entered(self, task: str) -> Rollout | None: ...
    async def last_changed(self, task: str) -> Rollout | None: ...
    async def last_promoted(self, task: str) -> Rollout | None: ...
    async def waiting(self, task: str) -> Rollout | None: ...
    async def with_verdict(self, event: AdapterEvaluated) -> Rollout | None: ...
    async def draws(self, task: str) -> list[Draw]: ...
    async def promotions(self, task: str) -> list[Promotion]: ...
    async def newest(self, task: str) -> Rollout | None: ...
    async def counting(self, tasks: Collection[str]) -> list[Rollout]: ...
    async def unsettled(self, task: str) -> list[Rollout]: ...
    async def tasks(self) -> list[str]: ...
    async def adapters(self) -> list[TaskAdapters]: ...
    async def candidates(self) -> list[str]: ...
    async def save(self, *rollouts: Rollout) -> None: ...
    async def set_begun(self, rollout: Rollout) -> None: ...
    async def set_written(self, rollout: Rollout) -> None: ...
    async def settle(self, rollout: Rollout) -> None: ...
    async def set_counted(self, rollout: Rollout) -> None: ...
    async def end_replays(self, rollout: Rollout) -> None: ...
    async def history(self, task: str, limit: int) -> list[Move]: ...
    async def unposted(self, since: datetime, limit: int) -> list[Move]: ...
    async def set_posted(self, move: Move) -> None: ...


class PostgresRollouts:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    def locked(self, task: str) -> AbstractAsyncContextManager[None]:
        """Hold the task's lock, over all processes, so that its flags are written in the order of its decisions."""
        return task_lock(self._engine, task)

    async def get(self, rollout_id: str) -> Rollout | None:
        return await self._newest(ROLLOUTS.c.rollout_id == rollout_id)

    async def last_entered(self, task: str) -> Rollout | None:
        """Return the task's last rollout that entered shadow, ended or not."""
        return await self._newest(sa.and_(ROLLOUTS.c.task == task, HAS_ENTERED))

    async def last_changed(self, task: str) -> Rollout | None:
        """Return that of the task's rollouts that entered shadow which changed last: it says who serves.

        It is the last that entered, unless the promotion before that was rolled back after it had ended.
        """
        return await self._newest(sa.and_(ROLLOUTS.c.task == task, HAS_ENTERED), ROLLOUTS.c.change)

    async def last_promoted(self, task: str) -> Rollout | None:
        """Return the last of the task's rollouts that is promoted, and was not rolled back."""
        return await self._newest(sa.and_(ROLLOUTS.c.task == task, ROLLOUTS.c.stage == Stage.PROMOTED.value))

    async def waiting(self, task: str) -> Rollout | None:
        """Return the task's candidate that waits for its turn."""
        return await self._newest(sa.and_(ROLLOUTS.c.task == task, ROLLOUTS.c.stage == Stage.QUEUED.value))

    async def with_verdict(self, event: AdapterEvaluated) -> Rollout | None:
        """Return the rollout that stands on this verdict, or did before a newer one.

        Its id says the first, which those judged again before verdicts were kept have nowhere else.
        """
        verdict = str(event.event_id)
        was_of_verdict = sa.literal(verdict, sa.Text) == sa.any_(ROLLOUTS.c.former_verdicts)
        began_with = ROLLOUTS.c.rollout_id == rollout_id(event)
        return await self._newest(sa.or_(began_with, ROLLOUTS.c.verdict_id == verdict, was_of_verdict))

    async def draws(self, task: str) -> list[Draw]:
        """Return what the task's candidates drew of the year's alpha and what they spent, oldest first."""
        columns = ROLLOUTS.c
        query = sa.select(columns.entered_at, columns.alpha_drawn, columns.alpha, columns.stage, columns.evidence)
        query = query.where(columns.task == task, HAS_ENTERED).order_by(columns.entered_at)
        async with transaction(self._engine) as connection:
            return [
                Draw(at, drawn, 0.0 if has_proven(Stage(stage), Evidence.model_validate(evidence)) else alpha)
                for at, drawn, alpha, stage, evidence in await connection.execute(query)
            ]

    async def promotions(self, task: str) -> list[Promotion]:
        """Return the task's promotions, by the history of its moves, each with the margin that it debited.

        Not those that were not made in the end, nor one that is not yet: they never were in effect.
        """
        of_task = sa.and_(MOVES.c.task == task, MOVES.c.stage == Stage.PROMOTED.value)
        earlier = MOVES.alias()
        of_rollout = sa.and_(earlier.c.rollout_id == MOVES.c.rollout_id, earlier.c.stage == Stage.CANARY.value)
        last_canary = sa.select(sa.func.max(earlier.c.version)).where(of_rollout).scalar_subquery()
        was_made = sa.and_(ROLLOUTS.c.settled, ROLLOUTS.c.stage.in_([Stage.PROMOTED.value, Stage.ROLLED_BACK.value]))
        query = (
            sa.select(MOVES.c.at, MOVES.c.evidence, ROLLOUTS.c.stage)
            .join(ROLLOUTS, ROLLOUTS.c.rollout_id == MOVES.c.rollout_id)
            .where(of_task, was_made, MOVES.c.version > last_canary)
            .ext(distinct_on(MOVES.c.rollout_id))
            .order_by(MOVES.c.rollout_id, MOVES.c.version)
        )
        async with transaction(self._engine) as connection:
            return [
                Promotion(at, Evidence.model_validate(evidence).margin_debited, stage == Stage.PROMOTED.value)
                for at, evidence, stage in await connection.execute(query)
            ]

    async def newest(self, task: str) -> Rollout | None:
        """Return the task's rollout that changed last: its state is the one that was published last."""
        return await self._newest(ROLLOUTS.c.task == task, ROLLOUTS.c.change)

    async def counting(self, tasks: Collection[str]) -> list[Rollout]:
        """Return those tasks' rollouts whose requests count: in shadow the primary's, later both arms'.

        Arms are compared in the canary, until a promotion is settled, and while it has a control.
        """
        return await self._select(sa.and_(ROLLOUTS.c.task.in_(list(tasks)), sa.or_(IS_ACTIVE, IS_GUARDED)))

    async def unsettled(self, task: str) -> list[Rollout]:
        """Return the task's rollouts whose flags or event may not be out, oldest change first."""
        return await self._select(sa.and_(ROLLOUTS.c.task == task, ~ROLLOUTS.c.settled))

    async def tasks(self) -> list[str]:
        async with transaction(self._engine) as connection:
            rows = await connection.execute(sa.select(ROLLOUTS.c.task).distinct().order_by(ROLLOUTS.c.task))
            return list(rows.scalars())

    async def adapters(self) -> list[TaskAdapters]:
        """Return what the last rollout of each task that entered shadow has to do with."""
        is_tried = sa.or_(IS_ACTIVE, ~ROLLOUTS.c.settled)
        candidate = sa.case((is_tried, ROLLOUTS.c.candidate), else_=sa.null())
        replaced = sa.case((~ROLLOUTS.c.settled, ROLLOUTS.c.before["previous"].astext), else_=sa.null())
        query = sa.select(ROLLOUTS.c.primary, candidate, ROLLOUTS.c.previous, replaced).where(HAS_ENTERED)
        last = query.ext(distinct_on(ROLLOUTS.c.task)).order_by(ROLLOUTS.c.task, ROLLOUTS.c.entry.desc())
        async with transaction(self._engine) as connection:
            return [TaskAdapters(*row) for row in await connection.execute(last)]

    async def candidates(self) -> list[str]:
        """Return the candidates of all rollouts that entered shadow, ended or not."""
        async with transaction(self._engine) as connection:
            rows = await connection.execute(sa.select(ROLLOUTS.c.candidate).where(HAS_ENTERED).distinct())
            return list(rows.scalars())

    async def confirm_lock(self) -> None:
        """Raise DependencyUnavailable where this code had the task's lock and lost it: before each write elsewhere."""
        async with writing(self._engine):
            pass

    async def save(self, *rollouts: Rollout) -> None:
        """Write these in one transaction. Idempotent: a stored rollout of the same or a later version stays."""
        async with writing(self._engine) as connection:
            for rollout in rollouts:
                values = _to_row(rollout)
                values["change"] = values["entry"] = sa.func.nextval("changes")
                statement = insert(ROLLOUTS).values({ROLLOUTS.c[name]: value for name, value in values.items()})
                update = {ROLLOUTS.c[n]: statement.excluded[n] for n in (*_FIELDS, "change") if n != "rollout_id"}
                saved = await connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=[ROLLOUTS.c.rollout_id],
                        set_=update,
                        where=ROLLOUTS.c.version < statement.excluded.version,
                    ).returning(ROLLOUTS.c.change)
                )
                if (change := saved.scalar()) is not None:
                    move = dataclasses.asdict(rollout.move) | {"change": change, "stage": rollout.stage.value}
                    await connection.execute(insert(MOVES).values(move | {"evidence": values["evidence"]}))

    async def set_begun(self, rollout: Rollout) -> None:
        """Record where Unleash's log was before this version's flags are set."""
        same = sa.and_(ROLLOUTS.c.rollout_id == rollout.rollout_id, ROLLOUTS.c.version == rollout.version)
        async with writing(self._engine) as connection:
            await connection.execute(sa.update(ROLLOUTS).where(same).values(log_entry=rollout.log_entry))

    async def set_written(self, rollout: Rollout) -> None:
        """Record that this version's flags are set: they are not set again, and what a hand does to them stays."""
        same = sa.and_(ROLLOUTS.c.rollout_id == rollout.rollout_id, ROLLOUTS.c.version == rollout.version)
        async with writing(self._engine) as connection:
            written = rollout.with_flags_set(utc_now())
            values = {"moves_flags": False, "step_since": written.step_since, **_counted(written)}
            await connection.execute(sa.update(ROLLOUTS).where(same).values(values))

    async def settle(self, rollout: Rollout) -> None:
        """Record that this version's flags and event are out. An ended rollout's conversations are deleted with it, and
        what was counted of single subjects of its canary.
        """
        same = sa.and_(ROLLOUTS.c.rollout_id == rollout.rollout_id, ROLLOUTS.c.version == rollout.version)
        async with writing(self._engine) as connection:
            await connection.execute(sa.update(ROLLOUTS).where(same).values(settled=True))
            if not rollout.active:
                ended = LEDGER.c.rollout_id == rollout.rollout_id
                if rollout.control:  # A second person may still be asked about a fresh pair.
                    ended = sa.and_(ended, ~LEDGER.c.fresh)
                await connection.execute(sa.update(LEDGER).where(ended).values(call=None))
                if not rollout.control:
                    await canaries.drop_subjects(connection, rollout.rollout_id)

    async def set_counted(self, rollout: Rollout) -> None:
        """Record at which share of users this version's guards count from now on, which is no move of its history."""
        same = sa.and_(ROLLOUTS.c.rollout_id == rollout.rollout_id, ROLLOUTS.c.version == rollout.version)
        async with writing(self._engine) as connection:
            await connection.execute(sa.update(ROLLOUTS).where(same).values(**_counted(rollout)))

    async def end_replays(self, rollout: Rollout) -> None:
        """Record that the replays after the rollout's promotion are over, which is no move of its history."""
        async with writing(self._engine) as connection:
            same = ROLLOUTS.c.rollout_id == rollout.rollout_id
            await connection.execute(sa.update(ROLLOUTS).where(same).values(replays_ended=True))

    async def history(self, task: str, limit: int) -> list[Move]:
        """Return the last changes of the task's rollouts, newest first."""
        of_task = _SELECT_MOVES.where(MOVES.c.task == task)
        return await self._moves(of_task.order_by(MOVES.c.change.desc()).limit(limit))

    async def unposted(self, since: datetime, limit: int) -> list[Move]:
        """Return the changes since a moment that the webhook does not have, oldest first."""
        new = _SELECT_MOVES.where(~MOVES.c.posted, MOVES.c.at > since)
        return await self._moves(new.order_by(MOVES.c.change).limit(limit))

    async def set_posted(self, move: Move) -> None:
        same = sa.and_(MOVES.c.rollout_id == move.rollout_id, MOVES.c.version == move.version)
        async with writing(self._engine) as connection:
            await connection.execute(sa.update(MOVES).where(same).values(posted=True))

    async def _moves(self, query: sa.Select[Any]) -> list[Move]:
        async with transaction(self._engine) as connection:
            return [
                Move(**{**row, "stage": Stage(row["stage"]), "evidence": Evidence.model_validate(row["evidence"])})
                for row in (await connection.execute(query)).mappings()
            ]

    async def _newest(
        self, where: sa.ColumnElement[bool], order: sa.ColumnElement[int] = ROLLOUTS.c.entry
    ) -> Rollout | None:
        statement = sa.select(ROLLOUTS).where(where).order_by(order.desc()).limit(1)
        async with transaction(self._engine) as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else _from_row(row)

    async def _select(self, where: sa.ColumnElement[bool]) -> list[Rollout]:
        async with transaction(self._engine) as connection:
            rows = await connection.execute(sa.select(ROLLOUTS).where(where).order_by(ROLLOUTS.c.change))
            return [_from_row(row) for row in rows.mappings()]


def _counted(rollout: Rollout) -> dict[str, Any]:
    return {"counted_percent": rollout.counted_percent, "counted_since": rollout.counted_since}


def _to_row(rollout: Rollout) -> dict[str, Any]:
    return {
        **{name: getattr(rollout, name) for name in _FIELDS},
        "stage": rollout.stage.value,
        "spec": rollout.spec.model_dump(mode="json"),
        "evidence": rollout.evidence.model_dump(mode="json"),
        "former_verdicts": list(rollout.former_verdicts),
        "before": rollout.before and rollout.before.model_dump(mode="json"),
    }


def _from_row(row: Any) -> Rollout:
    values = {name: row[ROLLOUTS.c[name]] for name in _FIELDS}
    values["stage"] = Stage(values["stage"])
    values["spec"] = TaskSpec.model_validate(values["spec"])
    values["evidence"] = Evidence.model_validate(values["evidence"])
    values["former_verdicts"] = tuple(values["former_verdicts"])
    values["before"] = values["before"] and Position.model_validate(values["before"])
    return Rollout(**values)
