"""The lock of a task, and transactions that are refused once it is lost.

A connection that breaks takes its lock along: another process has it then, or another worker of this one. Whoever had
it before may not know for a while. What it goes on to write, by what it read before, must not mix with what the new
holder decides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.errors import DependencyUnavailable
from shared.storage.database import transaction

_BACKEND: ContextVar[tuple[int, datetime] | None] = ContextVar("_BACKEND", default=None)
"""PostgreSQL's process that holds the lock that this code has, and since when it runs: ids come again."""
_OWN_BACKEND = sa.text("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
_IS_THERE = sa.text("SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = :pid AND backend_start = :since)")


@asynccontextmanager
async def task_lock(engine: AsyncEngine, task: str) -> AsyncIterator[None]:
    """Hold the task's lock, over all processes. Raises DependencyUnavailable while the database is away."""
    key = sa.func.hashtext(f"deployer {task}")
    async with transaction(engine) as connection:
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
        pid, since = (await connection.execute(_OWN_BACKEND)).one()
        token = _BACKEND.set((pid, since))
        try:
            yield
        finally:
            _BACKEND.reset(token)


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Begin a transaction. Raises DependencyUnavailable where the task's lock, if this code took it, is lost by now."""
    async with transaction(engine) as connection:
        holder = _BACKEND.get()
        if holder is not None and not await connection.scalar(_IS_THERE, {"pid": holder[0], "since": holder[1]}):
            raise DependencyUnavailable("the connection that held the task's lock broke", "It is tried again.")
        yield connection
