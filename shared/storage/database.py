"""PostgreSQL: one schema per service, see `migration`.

A service has its tables in `tables.py` (SQLAlchemy Core) and its migrations in `services/<name>/migrations/`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shared.errors import DependencyUnavailable
from shared.settings import Settings

_OF_THE_SERVER = {
    "tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3, "tcp_user_timeout": 60_000,
}  # fmt: skip
CONNECTING = {
    "connect_timeout": 5, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000, "options": " ".join(f"-c{name}={value}" for name, value in _OF_THE_SERVER.items()),
}  # fmt: skip
"""libpq's: in seconds, the timeout in milliseconds. A server that vanished without a word is noticed within a minute,
and so is a client by the server, which would else keep its locks for two hours (Linux's default)."""
_AWAY_FOR_NOW = {"25006", "25P03"}
"""SQLSTATEs of a server that takes no writes (it is a replica, or its disk is full), and that ended a transaction which
was idle. SQLAlchemy calls both internal errors."""


def database_url(settings: Settings) -> str:
    """Return the SQLAlchemy URL for psycopg 3, for sync and async engines."""
    scheme, _, rest = settings.postgres.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in {"postgresql", "postgres"} else settings.postgres


def build_engine(settings: Settings, service: str, connections: int = 15) -> AsyncEngine:
    """Return an engine whose connections see the service's own schema only. It connects on first use.

    `connections`: how many there may be at once; five of them stay open.
    """
    return create_async_engine(
        database_url(settings),
        pool_size=5,
        max_overflow=connections - 5,
        pool_pre_ping=True,
        connect_args={**CONNECTING, "options": f"-csearch_path={service} {CONNECTING['options']}"},
    )


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Begin a transaction; raises DependencyUnavailable instead of a driver's error while the database is away.

    It is away, too, while it takes no writes or has no free connection: what waits for it is no broken record.
    """
    try:
        async with engine.begin() as connection:
            yield connection
    except (OperationalError, InterfaceError, PoolTimeout, OSError) as error:
        raise unavailable(error) from error
    except DBAPIError as error:
        if error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _AWAY_FOR_NOW:
            raise unavailable(error) from error
        raise


def unavailable(error: Exception) -> DependencyUnavailable:
    """The error of a database that is away, with the first line of what the driver says; the others are its advice."""
    cause = str(getattr(error, "orig", error)).partition("\n")[0]
    return DependencyUnavailable(f"PostgreSQL does not answer: {cause}", "Check it: ratchet status")
