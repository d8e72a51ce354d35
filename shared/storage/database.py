"""PostgreSQL: one schema per service, created and migrated by Alembic.

A service has its tables in `tables.py` (SQLAlchemy Core) and its migrations in `services/<name>/migrations/`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shared.errors import ConfigurationError, DependencyUnavailable
from shared.settings import Settings

# Alembic has its context in module globals, so the services of a process migrate one after the other.
_ALEMBIC = threading.Lock()
_ENV_FOLDER = Path(__file__).parent / "alembic"
_CONNECTING = {
    "connect_timeout": 5, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}  # fmt: skip
"""libpq's: in seconds, the last in milliseconds. A server that vanished without a word is noticed within a minute."""
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
        connect_args={"options": f"-csearch_path={service}", **_CONNECTING},
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
        raise _unavailable(error) from error
    except DBAPIError as error:
        if error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _AWAY_FOR_NOW:
            raise _unavailable(error) from error
        raise


def _unavailable(error: Exception) -> DependencyUnavailable:
    """The error of a database that is away, with the first line of what the driver says; the others are its advice."""
    cause = str(getattr(error, "orig", error)).partition("\n")[0]
    return DependencyUnavailable(f"PostgreSQL does not answer: {cause}", "Check it: ratchet status")


async def migrate(settings: Settings, service: str, versions: Path) -> None:
    """Migrate the service's schema to the newest version. Two processes may call it at once: one waits."""
    await asyncio.to_thread(_migrate, settings, service, versions)


def _migrate(settings: Settings, service: str, versions: Path) -> None:
    engine = create_engine(database_url(settings), connect_args=_CONNECTING)
    config = Config()
    config.set_main_option("script_location", str(_ENV_FOLDER))
    config.set_main_option("version_locations", str(versions))
    config.set_main_option("path_separator", "os")
    try:
        with _ALEMBIC, engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"migrate {service}"})
            connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{service}"'))
            connection.execute(text(f'SET LOCAL search_path TO "{service}"'))
            config.attributes["connection"] = connection
            config.attributes["schema"] = service
            _check_version(connection, config)
            command.upgrade(config, "head")
    except OperationalError as error:
        raise _unavailable(error) from error
    except CommandError as error:
        raise ConfigurationError(
            f"schema {service} of the database is of another version of Ratchet: {error}",
            f'Use that version, or start afresh: DROP SCHEMA "{service}" CASCADE',
        ) from error
    finally:
        engine.dispose()


def _check_version(connection: Connection, config: Config) -> None:
    """Raise CommandError for a database whose version is not one of the migrations.

    Alembic would take the beginning of an id for the id: a database at `x_0001` for one at `x_0001_offsets`.
    """
    if connection.scalar(text("SELECT to_regclass('schema_version')")) is None:
        return
    known = {migration.revision for migration in ScriptDirectory.from_config(config).walk_revisions()}
    for version in connection.scalars(text("SELECT version_num FROM schema_version")):
        if version not in known:
            raise CommandError(f"its version is {version}, which none of the migrations has")
