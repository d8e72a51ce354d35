"""The lock of a task, and transactions that are refused once it is lost (`shared/storage/held_locks.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.storage.database import transaction
from shared.storage.held_locks import held_by, raise_if_lost


@asynccontextmanager
async def task_lock(engine: AsyncEngine, task: str) -> AsyncIterator[None]:
    """Hold the task's lock, over all processes. Raises DependencyUnavailable while the database is away."""
    key = sa.func.hashtext(f"deployer {task}")
    async with transaction(engine) as connection:
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
        async with held_by(connection):
            yield


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Begin a transaction. Raises DependencyUnavailable where the task's lock, if this code took it, is lost by now."""
    async with transaction(engine) as connection:
        await raise_if_lost(connection)
        yield connection
