"""Whether the lock that this code holds is lost.

A connection that breaks takes its locks along: another process has them then, or another worker of this one. Whoever
had one before may not know for a while. What it goes on to write, by what it read before, must not mix with what the
new holder decides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.errors import DependencyUnavailable

_BACKEND: ContextVar[tuple[int, datetime] | None] = ContextVar("_BACKEND", default=None)
"""PostgreSQL's process that holds the lock that this code has, and since when it runs: ids come again."""
_OWN_BACKEND = sa.text("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
_IS_THERE = sa.text("SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = :pid AND backend_start = :since)")


@asynccontextmanager
async def held_by(connection: AsyncConnection) -> AsyncIterator[None]:
    """Note that this connection's transaction holds a task's lock, for this code and the tasks that it starts."""
    pid, since = (await connection.execute(_OWN_BACKEND)).one()
    token = _BACKEND.set((pid, since))
    try:
        yield
    finally:
        _BACKEND.reset(token)


async def raise_if_lost(connection: AsyncConnection) -> None:
    """Raise DependencyUnavailable where a task's lock, if this code took it, is lost. `connection`: another one."""
    holder = _BACKEND.get()
    if holder is not None and not await connection.scalar(_IS_THERE, {"pid": holder[0], "since": holder[1]}):
        raise DependencyUnavailable("the connection that held the task's lock broke", "It is tried again.")
