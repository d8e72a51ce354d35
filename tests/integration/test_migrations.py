"""Migrations on a real PostgreSQL: they create the tables that the code names."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.labels import LabelRequested, Purpose
from schemas.predictions import SubjectForgotten
from services.console import tables as console
from services.console.storage import PostgresQueue
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

    async def migrate_to(self, last: str, folder: Path) -> None:
        """Migrate as a checkout did whose last migration was the file `last`. `folder`: an empty one."""
        for file in self._versions.glob("[0-9]*.py"):
            if file.name <= last:
                shutil.copy(file, folder)
        await migrate(self._settings, self.schema, folder)

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


@pytest.mark.parametrize("service", ["console", "dataset_builder", "deployer", "failure_miner", "scheduler", "shadow"])
async def test_a_database_of_an_earlier_checkout_is_refused(migrated: Callable[[str], Migrated], service: str) -> None:
    database = migrated(service)
    await database.migrate()
    await database.execute(f"UPDATE \"{database.schema}\".schema_version SET version_num = '{service}_0001'")
    with pytest.raises(ConfigurationError, match=f"its version is {service}_0001"):
        await database.migrate()


async def test_what_a_person_wrote_on_a_question_of_an_earlier_checkout_is_erased_with_them(
    migrated: Callable[[str], Migrated], tmp_path: Path
) -> None:
    database = migrated("console")
    await database.migrate_to("0001_initial.py", tmp_path)
    naming = {"messages": [{"role": "user", "content": "NUL: \x00"}], "parameters": {"suggested_by": "h2"}}
    asked = LabelRequested.model_validate({
        "task": "desk", "task_revision": "r1", "request_id": "asked", "prediction_id": "desk.1", "user_hash": "h1",
        "purpose": Purpose.FEEDBACK, "answers": [{"text": "lost"}], "call": naming,
    })  # fmt: skip
    wrote = asked.model_copy(update={"request_id": "wrote", "suggestion": "refund", "suggested_by": "h2"})
    others = wrote.model_copy(update={"request_id": "others", "suggested_by": "h3"})
    now = asked.occurred_at
    columns = {
        "task": "desk", "task_revision": "r1", "prediction_id": "desk.1", "user_hash": "h1", "purpose": "feedback",
        "priority": 0.5, "needed": 1, "asks_label": False, "happened_at": now, "asked_at": now,
    }  # fmt: skip
    rows = [
        {**columns, "request_id": q.request_id, "case_id": q.request_id, "request": q.model_dump_json()}
        for q in (asked, wrote, others)
    ]
    async with database.engine.begin() as connection:
        await connection.execute(sa.insert(sa.table("requests", *map(sa.column, rows[0]))), rows)
    await database.migrate()
    queue = PostgresQueue(database.engine, timedelta(hours=1))
    await queue.erase(SubjectForgotten(task="desk", task_revision="r1", subject_hash="h2"))
    found = {question.request_id: question for question in await queue.other_questions("desk", None, "ann", 9)}
    assert found == {"others": others, "asked": asked}, "a page may show what was written"
