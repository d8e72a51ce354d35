"""A deleted lake is filled again from its broker, and a broker that comes back empty stops the writer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from deploy.cli.app import app
from schemas.base import Event
from schemas.lake import FEEDBACK, FORGOTTEN, PREDICTIONS, REQUESTS
from schemas.predictions import SubjectForgotten
from services.prediction_log.main import build
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.tables import open_table
from shared.service import running
from shared.settings import Settings
from tests.conftest import ROOT, on_tansu
from tests.integration import publishing
from tests.integration.gateway_process import OwnBroker
from tests.unit.prediction_log.deliveries import NOON, TASK, feedback, prediction, request
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack

PEOPLE = ("ann", "bob", "eve")
QUICK = {
    "RATCHET_PREDICTION_LOG_MAINTENANCE_SECONDS": "1",
    "RATCHET_PREDICTION_LOG_GRACE_HOURS": "0",
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    broker = OwnBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.close()


@pytest.fixture
def settings(broker: OwnBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of the broker's home, with a lake of the test's own."""
    for name in [name for name in os.environ if name.startswith("RATCHET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RATCHET_HOME", str(broker.home))
    monkeypatch.setenv("RATCHET_LAKE", str(tmp_path / "lake"))
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def lose_everything(broker: OwnBroker) -> None:
    """Restart the broker without its topics, groups and offsets, as after a lost disk, and recreate the topics."""
    broker.close()
    shutil.rmtree(broker.home / "data" / ("s3" if on_tansu() else "kafka"))
    broker.start()


async def publish(service: str, events: Sequence[Event]) -> None:
    await publishing.publish(Settings.load(), service, *events)


def traffic(prefix: str) -> list[Event]:
    """Return an answered request, its observation and feedback for each person and hour: some late, some sent twice,
    every tenth with two answers."""
    events: list[Event] = []
    for number in range(60):
        name, user = f"{prefix}-{number}", f"{PEOPLE[number % len(PEOPLE)]}-{prefix}"
        at = NOON + timedelta(hours=number % 7, days=-(number % 3))
        asked = prediction(name, at, user, text=f"the secret of {user}", answers=1 + (number % 10 == 0))
        events += [request(name, at, user), asked, feedback(f"f-{name}", name, at)]
    return [*events, *events[::9]]


def rows(table: str, without: str | None = None) -> list[dict[str, Any]]:
    """Return a table's rows in a fixed order, except those of the person `without` and of their predictions."""
    delta = open_table(Settings.load().lake_uri, table)
    found = delta.to_pyarrow_table().to_pylist() if delta else []
    theirs = {row["prediction_id"] for row in rows(PREDICTIONS) if row["user_hash"] == without} if without else set()
    return sorted((row for row in found if row["prediction_id"] not in theirs), key=repr)


def hashes(without: str | None = None) -> dict[str, str]:
    return {
        table: hashlib.sha256(repr(rows(table, without)).encode()).hexdigest()
        for table in (PREDICTIONS, FEEDBACK, REQUESTS)
    }


def counts() -> tuple[int, ...]:
    return tuple(len(rows(table)) for table in (PREDICTIONS, FEEDBACK, REQUESTS))


def files_with(text: str) -> list[str]:
    """Return the files of the lake, active or not, with `text` in a column or in their raw bytes."""
    found = []
    for path in (path for path in Path(Settings.load().lake_uri).rglob("*") if path.is_file()):
        try:
            columns = parquet.ParquetFile(path).read().to_pylist() if path.suffix == ".parquet" else ""
            if text in str(columns) or text.encode() in path.read_bytes():
                found.append(path.name)
        except FileNotFoundError:  # It was deleted meanwhile.
            continue
    return found


@asynccontextmanager
async def prediction_log() -> AsyncIterator[None]:
    async with running([build(PredictionLogSettings.load())]):
        yield


class Process:
    """prediction_log in a process of its own, as `ratchet up --split` starts it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        argv = [sys.executable, "-m", "deploy.runner", "prediction_log"]
        with log.open("wb") as file:
            self._process = subprocess.Popen(argv, cwd=ROOT, stdout=file, stderr=file)

    async def result(self) -> tuple[int, str]:
        """Wait for the process to exit; return its exit code and the end of its output."""
        code = await asyncio.to_thread(self._process.wait, PATIENCE_SECONDS)
        return code, self._log.read_text()[-3000:]

    async def stop(self) -> None:
        self._process.terminate()
        await self.result()


async def ratchet(*words: str) -> tuple[int, str]:
    result = await asyncio.to_thread(CliRunner().invoke, app, words, env={"COLUMNS": "200"})
    return result.exit_code, result.output


async def test_a_deleted_lake_is_filled_again_with_the_same_rows_without_erased_people(settings: Settings) -> None:
    await publish("gateway", traffic("p"))
    async with prediction_log():
        await until(lambda: counts() >= (66, 60, 60))
    first = hashes()
    assert counts() == (66, 60, 60), "an event that was sent twice is stored once"
    shutil.rmtree(settings.lake_uri)
    async with prediction_log():
        await until(lambda: hashes() == first)
    expected = hashes(without="bob-p")
    assert files_with("the secret of bob-p")

    asked_at = NOON + timedelta(days=1)
    await publish("scheduler", [SubjectForgotten(task=TASK, task_revision="r1", subject_hash="bob-p",
                                                 occurred_at=asked_at)])  # fmt: skip
    async with prediction_log():
        await until(lambda: hashes() == expected and not files_with("the secret of bob-p"))
    assert counts() == (44, 40, 40)
    for _ in range(2):  # By now the consumer group has read all records, the erasure request too.
        shutil.rmtree(settings.lake_uri)
        async with prediction_log():
            await until(lambda: open_table(settings.lake_uri, FORGOTTEN) is not None and hashes() == expected)
            await until(lambda: not files_with("the secret of bob-p"))
    code, output = await ratchet("lake", "status", "--json")
    assert code == 0, output
    assert {row["table"]: (row["rows"], row["waiting"]) for row in json.loads(output)["tables"]} == {
        PREDICTIONS: (44, 0), FEEDBACK: (40, 0), REQUESTS: (40, 0), FORGOTTEN: (1, 0),
    }  # fmt: skip


async def test_a_broker_that_comes_back_empty_stops_the_writer_until_the_operator_resumes(
    settings: Settings, broker: OwnBroker, tmp_path: Path
) -> None:
    await publish("gateway", traffic("q"))
    first = Process(log := tmp_path / "log-1")

    def explain() -> str:
        return f"{counts()}, {log.read_text()[-3000:]}"

    # The events of the test before this one are stored too, without those of the erased person.
    await until(lambda: sum(row["prediction_id"].startswith("q-") for row in rows(PREDICTIONS)) == 66, explain)
    await until(lambda: counts() in ((66, 60, 60), (110, 100, 100)), explain)
    before = hashes()
    await asyncio.to_thread(lose_everything, broker)
    await publish("gateway", [prediction("new", NOON + timedelta(days=2)), prediction("q-0", NOON)])
    for process in (first, Process(tmp_path / "log-2")):  # Also after a restart by its supervisor.
        code, output = await process.result()
        assert code == 1, output
        *_, problem, way_out = output.splitlines()  # The last lines: no stack trace follows them.
        assert "Nothing was read from it" in problem and "ratchet lake resume" in way_out
    assert hashes() == before, "no row was discarded"

    code, output = await ratchet("lake", "status")
    assert code == 1 and "recreated" in output and "resume" in output
    code, output = await ratchet("lake", "resume", "--dry-run")
    assert code == 0 and "The 2 records" in output
    assert (await ratchet("lake", "status"))[0] == 1, "the dry run changed nothing"
    code, output = await ratchet("lake", "resume", "--yes")
    assert code == 0 and "RATCHET_KAFKA_INCARNATION=" in output

    resumed = Process(tmp_path / "log-3")
    await until(lambda: any(row["prediction_id"] == "new" for row in rows(PREDICTIONS)))
    await publish("gateway", [prediction("newer", NOON + timedelta(days=3))])
    await until(lambda: any(row["prediction_id"] == "newer" for row in rows(PREDICTIONS)))
    await resumed.stop()
    now = [row["prediction_id"] for row in rows(PREDICTIONS)]
    assert len(now) == len(set(now)), "stored rows are found by their ids"
    assert {"q-0", "new", "newer"} < set(now)
    assert hashes()[FEEDBACK] == before[FEEDBACK]
    code, output = await ratchet("lake", "resume", "--yes")
    assert code == 0 and "nothing to resume from" in output
    assert (await ratchet("lake", "status"))[0] == 0
