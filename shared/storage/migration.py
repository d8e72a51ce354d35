"""The schema of a service in PostgreSQL, created and migrated by Alembic, at its start."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from shared.errors import ConfigurationError
from shared.settings import Settings
from shared.storage.database import CONNECTING, database_url, unavailable

# Alembic has its context in module globals, so the services of a process migrate one after the other.
_ALEMBIC = threading.Lock()
_ENV_FOLDER = Path(__file__).parent / "alembic"


async def migrate(settings: Settings, service: str, versions: Path) -> None:
    """Migrate the service's schema to the newest version. Two processes may call it at once: one waits."""
    await asyncio.to_thread(_migrate, settings, service, versions)


def _migrate(settings: Settings, service: str, versions: Path) -> None:
    engine = create_engine(database_url(settings), connect_args=CONNECTING)
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
            command.upgrade(config, "head")
    except OperationalError as error:
        raise unavailable(error) from error
    except CommandError as error:
        raise ConfigurationError(
            f"schema {service} of the database is of another version of Ratchet: {error}",
            f'Use that version, or start afresh: DROP SCHEMA "{service}" CASCADE',
        ) from error
    finally:
        engine.dispose()
