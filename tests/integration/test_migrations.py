"""Migrations on a real PostgreSQL: they make the tables that the code names, and take a full older database along."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.base import Message, Role
from schemas.cycles import PartitionFence
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import SubjectForgotten
from services.console import tables as console
from services.console.storage import PostgresQueue
from services.dataset_builder import tables as dataset_builder
from services.dataset_builder.storage import PostgresCorrectionStore
from services.deployer import tables as deployer
from services.failure_miner import tables as failure_miner
from services.failure_miner.storage import PostgresSuspectStore
from services.scheduler import tables as scheduler
from shared.privacy.erasure import erased_among
from shared.settings import Settings
from shared.storage.database import build_engine, migrate

pytestmark = pytest.mark.stack

SERVICES = Path(__file__).parents[2] / "services"
NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)


class Migrated:
    """A schema of the test's own, first as far as `until` (a migration's number), then whole."""

    def __init__(self, settings: Settings, service: str, folder: Path) -> None:
        self.schema = f"{service}_{uuid4().hex[:8]}"
        self.engine: AsyncEngine = build_engine(settings, self.schema)
        self._settings = settings
        self._versions = SERVICES / service / "migrations"
        self._folder = folder / self.schema

    async def up_to(self, number: int) -> None:
        self._folder.mkdir()
        for file in self._versions.glob("[0-9]*.py"):
            if int(file.name[:4]) <= number:
                shutil.copy(file, self._folder)
        await migrate(self._settings, self.schema, self._folder)

    async def whole(self) -> None:
        for _ in range(2):  # Every start of the service does it.
            await migrate(self._settings, self.schema, self._versions)

    async def execute(self, statement: str, **values: object) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(sa.text(statement), values)


@pytest.fixture
async def migrated(stack_settings: Settings, tmp_path: Path) -> AsyncIterator[Callable[[str], Migrated]]:
    made: list[Migrated] = []

    def make(service: str) -> Migrated:
        made.append(Migrated(stack_settings, service, tmp_path))
        return made[-1]

    yield make
    for database in made:
        await database.execute(f'DROP SCHEMA IF EXISTS "{database.schema}" CASCADE')
        await database.engine.dispose()


@pytest.mark.parametrize("module", [console, dataset_builder, deployer, failure_miner, scheduler])
async def test_the_migrations_create_the_tables_of_the_code(
    migrated: Callable[[str], Migrated], module: ModuleType
) -> None:
    service = module.__name__.split(".")[1]
    database = migrated(service)
    await database.whole()
    metadata: sa.MetaData = module.METADATA

    def columns(connection: sa.Connection) -> dict[str, set[str]]:
        look = sa.inspect(connection)
        names = set(look.get_table_names(schema=database.schema)) - {"schema_version"}
        return {name: {column["name"] for column in look.get_columns(name, schema=database.schema)} for name in names}

    async with database.engine.connect() as connection:
        assert await connection.run_sync(columns) == {
            name: {column.name for column in table.columns} for name, table in metadata.tables.items()
        }


def question(name: str) -> LabelRequested:
    return LabelRequested(
        task="desk", task_revision="r1", request_id=name, prediction_id=f"desk.{name}", purpose=Purpose.FEEDBACK,
        messages=(Message(role=Role.USER, content="where?\x00"),), answers=("refund",), labels=("delivery", "refund"),
        user_hash="u1", occurred_at=NOON,
    )  # fmt: skip


def forget(at: datetime) -> SubjectForgotten:
    return SubjectForgotten(task="desk", task_revision="r1", subject_hash="u1", occurred_at=at)


async def test_questions_of_an_older_console_are_still_asked_and_forgotten(
    migrated: Callable[[str], Migrated],
) -> None:
    database, event = migrated("console"), question("q")
    await database.up_to(1)
    await database.execute(
        "INSERT INTO requests (request_id, task, task_revision, purpose, priority, needed, user_hash, request)"
        " VALUES ('q', 'desk', 'r1', 'feedback', 0.5, 1, 'u1', :event)",
        event=event.model_dump_json(exclude={"predicted_at"}),
    )
    await database.whole()
    queue = PostgresQueue(database.engine)
    assert await queue.other_questions("desk", "r1", "ann", 9) == [event]
    await queue.erase(forget(NOON - timedelta(seconds=1)))
    assert await queue.request("q") is not None
    await queue.erase(forget(NOON))
    assert await queue.request("q") is None


async def test_an_older_dataset_builder_database_keeps_its_corrections_and_erased_people(
    migrated: Callable[[str], Migrated],
) -> None:
    event = CorrectionSubmitted(
        task="desk", task_revision="r1", correction_id="c", request_id="r", prediction_id="desk.1",
        purpose=Purpose.FEEDBACK, reviewer="ann", messages=question("q").messages, answers=("refund",),
        label="delivery", user_hash="u2", occurred_at=NOON,
    )  # fmt: skip
    database = migrated("dataset_builder")
    await database.up_to(1)
    await database.execute("INSERT INTO forgotten (task, subject_hash) VALUES ('desk', 'u1')")
    await database.execute(
        'INSERT INTO corrections (correction_id, prediction_id, task, task_revision, user_hash, partition, "offset",'
        " event) VALUES ('c', 'desk.1', 'desk', 'r1', 'u2', 0, 7, :event)",
        event=event.model_dump_json(exclude={"predicted_at"}),
    )
    await database.whole()
    store = PostgresCorrectionStore(database.engine)
    fence = [PartitionFence(topic="corrections.submitted.v1", partition=0, offset=8)]
    assert await store.corrections_below("desk", "r1", fence) == [event]
    async with database.engine.connect() as connection:
        erased = await erased_among(connection, dataset_builder.FORGOTTEN, [("desk", "u1")])
    assert erased.covers("desk", "u1", NOON - timedelta(days=1))
    await store.expire("desk", NOON + timedelta(days=1))
    assert await store.corrections_below("desk", "r1", fence) == []


async def test_an_older_failure_miner_database_keeps_its_suspects_and_erased_people(
    migrated: Callable[[str], Migrated],
) -> None:
    database = migrated("failure_miner")
    await database.up_to(2)
    await database.execute("INSERT INTO forgotten (task, subject_hash) VALUES ('desk', 'u1')")
    await database.execute(
        "INSERT INTO suspects (prediction_id, task, task_revision, occurred_at, text, answer, topic, partition,"
        " \"offset\", embedding) VALUES ('desk.1', 'desk', 'r1', :at, 'where?', 'refund', 't', 0, 7, '')",
        at=NOON,
    )
    await database.whole()
    store = PostgresSuspectStore(database.engine, "corrections.submitted.v1")
    assert await store.stored_ids(["desk.1"]) == {"desk.1"}
    assert (await store.erased([("desk", "u1")])).covers("desk", "u1", NOON - timedelta(days=1))
