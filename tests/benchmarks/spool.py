"""What keeping an event costs a request: the gateway's spool, by fsync policy, against SQLite in the same run.

Each event is 1 KB and is serialised, encrypted and written, as on the request path. SQLite (WAL, synchronous=NORMAL:
what a process's death leaves and, but for the last moments, a power cut) gets the same bytes, not encrypted, and
commits each. 16 requests at once bring 1,000 events/s, so that fsyncs in the background fall among them as in service.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from schemas.base import Message, Role, Variant
from schemas.predictions import Confidence, PredictionLogged
from services.gateway.log import SpoolLog, record_of
from services.gateway.metrics import Metrics
from services.gateway.settings import GatewaySettings
from shared.spool import Sync
from tests.benchmarks.table import Measured, compare, report

CLIENTS, EVENTS_EACH, RATE = 16, 400, 1_000
BATCH, PAIRS = 5_000, 7
_SIZE = 1_000

Append = Callable[[PredictionLogged], Awaitable[None]]


class Sqlite:
    """An event log as people write it who have no spool."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, topic TEXT, key BLOB, value BLOB)")

    async def append(self, event: PredictionLogged) -> None:
        record = record_of(event)
        self._connection.execute(
            "INSERT INTO events (topic, key, value) VALUES (?, ?, ?)", (record.topic, record.key, record.value)
        )

    def close(self) -> None:
        self._connection.close()


def main() -> None:
    """Run and report."""
    default = GatewaySettings().gateway_spool_sync
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        sqlite = Sqlite(Path(folder) / "peer.sqlite")
        logs = {sync: runner.run(_open(Path(folder) / sync, sync)) for sync in Sync}
        for sync, log in logs.items():
            name = f"append, sync: {sync}{' (the default)' if sync is default else ''}"
            measured += _percentiles(name, runner.run(_waits(log.append)))
        measured += _percentiles("SQLite insert and commit", runner.run(_waits(sqlite.append)))
        result = compare(
            "events of 1 KB appended", "SQLite, WAL, NORMAL", "events/s", BATCH,
            lambda: runner.run(_drive(logs[default].append)), lambda: runner.run(_drive(sqlite.append)), PAIRS,
        )  # fmt: skip
        for log in logs.values():
            runner.run(log.close())
        sqlite.close()
    report([result], "spool", measured)


async def _open(folder: Path, sync: Sync) -> SpoolLog:
    settings = GatewaySettings(home=folder, gateway_spool_sync=sync)
    log = SpoolLog(settings.spool_folder, settings.secrets_folder, settings.spool_options, Metrics())
    await log.start()
    return log


async def _waits(append: Append) -> list[float]:
    """Seconds that each append took, of `CLIENTS` at once."""
    found: list[float] = []
    await _drive(append, 500)  # Warm.

    async def client() -> None:
        for event in _events(EVENTS_EACH):
            await asyncio.sleep(random.expovariate(RATE / CLIENTS))
            started = time.perf_counter()
            await append(event)
            found.append(time.perf_counter() - started)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return found


async def _drive(append: Append, count: int = BATCH) -> None:
    for event in _events(count):
        await append(event)


def _events(count: int) -> Iterator[PredictionLogged]:
    """Predictions that are 1 KB as JSON."""
    event = PredictionLogged(
        task="support-desk",
        task_revision="0123456789ab",
        prediction_id="support-desk.0123456789abcdef0123456789abcdef.0123456789ab",
        messages=(Message(role=Role.USER, content=""),),
        answer="delivery",
        model="base",
        variant=Variant.BASE,
        confidence=Confidence(score=0.93, logprob=-0.07, tokens=3),
        user_hash="0123456789abcdef01234567",
        latency_ms=12.5,
        prompt_tokens=120,
        answer_tokens=3,
        finish_reason="stop",
    )
    text = "x" * (_SIZE - len(event.model_dump_json()))
    message = Message(role=Role.USER, content=text)
    for _ in range(count):
        yield event.model_copy(update={"messages": (message,)})


def _percentiles(name: str, seconds: list[float]) -> list[Measured]:
    cuts = statistics.quantiles(seconds, n=100)
    return [Measured(f"{name}, p{cut}", "µs", cuts[cut - 1] * 1e6) for cut in (50, 99)]


if __name__ == "__main__":
    main()
