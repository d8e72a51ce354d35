"""Rollouts in PostgreSQL.

A change of a rollout is saved as unsettled, then its flags are set and its event is published, then it is settled.
Any process that finds an unsettled change finishes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.rollouts import Evidence, Stage
from schemas.tasks import TaskSpec
from services.deployer.rollout import ACTIVE, Rollout
from services.deployer.tables import LEDGER, ROLLOUTS
from shared.storage.database import transaction

IS_ACTIVE = sa.and_(ROLLOUTS.c.entered, ROLLOUTS.c.stage.in_(ACTIVE))
_FIELDS = [field.name for field in dataclasses.fields(Rollout)]


class RolloutStore(Protocol):
    """The rollouts of all tasks. Change those of a task, and its ledgers, only inside `locked(task)`."""

    def locked(self, task: str) -> AbstractAsyncContextManager[None]: ...
    async def get(self, rollout_id: str) -> Rollout | None: ...
    async def last_entered(self, task: str) -> Rollout | None: ...
    async def active(self) -> list[Rollout]: ...
    async def unsettled(self, task: str) -> list[Rollout]: ...
    async def tasks(self) -> list[str]: ...
    async def save(self, *rollouts: Rollout) -> None: ...
    async def settle(self, rollout: Rollout) -> None: ...


class PostgresRollouts:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def locked(self, task: str) -> AsyncIterator[None]:
        """Hold the task's lock, over all processes, so that its flags are written in the order of its decisions."""
        async with transaction(self._engine) as connection:
            key = sa.func.hashtext(f"deployer {task}")
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
            yield

    async def get(self, rollout_id: str) -> Rollout | None:
        return await self._newest(ROLLOUTS.c.rollout_id == rollout_id)

    async def last_entered(self, task: str) -> Rollout | None:
        """Return the task's last rollout that entered shadow, ended or not."""
        return await self._newest(sa.and_(ROLLOUTS.c.task == task, ROLLOUTS.c.entered))

    async def active(self) -> list[Rollout]:
        return await self._select(IS_ACTIVE)

    async def unsettled(self, task: str) -> list[Rollout]:
        """Return the task's rollouts whose flags or event may not be out, oldest change first."""
        return await self._select(sa.and_(ROLLOUTS.c.task == task, ~ROLLOUTS.c.settled))

    async def tasks(self) -> list[str]:
        async with transaction(self._engine) as connection:
            rows = await connection.execute(sa.select(ROLLOUTS.c.task).distinct().order_by(ROLLOUTS.c.task))
            return list(rows.scalars())

    async def save(self, *rollouts: Rollout) -> None:
        """Write these in one transaction. Idempotent: a stored rollout of the same or a later version stays."""
        async with transaction(self._engine) as connection:
            for rollout in rollouts:
                values = _to_row(rollout)
                values["change"] = values["entry"] = sa.func.nextval("changes")
                statement = insert(ROLLOUTS).values({ROLLOUTS.c[name]: value for name, value in values.items()})
                update = {ROLLOUTS.c[n]: statement.excluded[n] for n in (*_FIELDS, "change") if n != "rollout_id"}
                await connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=[ROLLOUTS.c.rollout_id],
                        set_=update,
                        where=ROLLOUTS.c.version < statement.excluded.version,
                    )
                )

    async def settle(self, rollout: Rollout) -> None:
        """Record that this version's flags and event are out. An ended rollout's conversations are deleted with it."""
        same = sa.and_(ROLLOUTS.c.rollout_id == rollout.rollout_id, ROLLOUTS.c.version == rollout.version)
        async with transaction(self._engine) as connection:
            await connection.execute(sa.update(ROLLOUTS).where(same).values(settled=True))
            if not rollout.active:
                ended = LEDGER.c.rollout_id == rollout.rollout_id
                await connection.execute(sa.update(LEDGER).where(ended).values(call=None))

    async def _newest(self, where: sa.ColumnElement[bool]) -> Rollout | None:
        statement = sa.select(ROLLOUTS).where(where).order_by(ROLLOUTS.c.entry.desc()).limit(1)
        async with transaction(self._engine) as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else _from_row(row)

    async def _select(self, where: sa.ColumnElement[bool]) -> list[Rollout]:
        async with transaction(self._engine) as connection:
            rows = await connection.execute(sa.select(ROLLOUTS).where(where).order_by(ROLLOUTS.c.change))
            return [_from_row(row) for row in rows.mappings()]


def _to_row(rollout: Rollout) -> dict[str, Any]:
    return {
        **{name: getattr(rollout, name) for name in _FIELDS},
        "stage": rollout.stage.value,
        "spec": rollout.spec.model_dump(mode="json"),
        "evidence": rollout.evidence.model_dump(mode="json"),
    }


def _from_row(row: Any) -> Rollout:
    values = {name: row[ROLLOUTS.c[name]] for name in _FIELDS}
    values["stage"] = Stage(values["stage"])
    values["spec"] = TaskSpec.model_validate(values["spec"])
    values["evidence"] = Evidence.model_validate(values["evidence"])
    return Rollout(**values)
