"""Migrations on a real PostgreSQL: they create the tables that the code names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from services.console import tables as console
from services.dataset_builder import tables as dataset_builder
from services.deployer import tables as deployer
from services.failure_miner import tables as failure_miner
from services.scheduler import tables as scheduler
from services.shadow import tables as shadow
from shared.errors import ConfigurationError
from shared.settings import Settings
from shared.storage.database import build_engine
from shared.storage.migration import migrate

pytestmark = pytest.mark.stack

SERVICES = Path(__file__).parents[2] / "services"


class Migrated:
    """A schema of the test's own."""

    def __init__(self, settings: Settings, service: str) -> None:
        self.service = service
        self.schema = f"{service}_{uuid4().hex[:8]}"
        self.engine: AsyncEngine = build_engine(settings, self.schema)
        self._settings = settings
        self._versions = SERVICES / service / "migrations"

    async def migrate(self) -> None:
        for _ in range(2):  # Every start of the service does it.
            await migrate(self._settings, self.schema, self._versions)

    async def execute(self, statement: str) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(sa.text(statement))


@pytest.fixture
async def migrated(stack_settings: Settings) -> AsyncIterator[Callable[[str], Migrated]]:
    made: list[Migrated] = []

    def make(service: str) -> Migrated:
        made.append(Migrated(stack_settings, service))
        return made[-1]

    yield make
    for database in made:
        await database.execute(f'DROP SCHEMA IF EXISTS "{database.schema}" CASCADE')
        await database.engine.dispose()


@pytest.mark.parametrize("module", [console, dataset_builder, deployer, failure_miner, scheduler, shadow])
async def test_the_migrations_create_the_tables_of_the_code(
    migrated: Callable[[str], Migrated], module: ModuleType
) -> None:
    service = module.__name__.split(".")[1]
    database = migrated(service)
    await database.migrate()
    metadata: sa.MetaData = module.METADATA

    def columns(connection: sa.Connection) -> dict[str, set[str]]:
        look = sa.inspect(connection)
        names = set(look.get_table_names(schema=database.schema)) - {"schema_version"}
        return {name: {column["name"] for column in look.get_columns(name, schema=database.schema)} for name in names}

    async with database.engine.connect() as connection:
        assert await connection.run_sync(columns) == {
            name: {column.name for column in table.columns} for name, table in metadata.tables.items()
        }


async def test_a_database_of_another_version_is_refused_with_the_way_out(migrated: Callable[[str], Migrated]) -> None:
    database = migrated("console")
    await database.migrate()
    await database.execute(f"UPDATE \"{database.schema}\".schema_version SET version_num = 'console_9999'")
    with pytest.raises(ConfigurationError, match="another version of Ratchet") as raised:
        await database.migrate()
    assert "DROP SCHEMA" in raised.value.way_out
