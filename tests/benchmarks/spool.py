"""The cost of writing events per request: the gateway's spool, by fsync policy, against SQLite in the same run.

Clients call the gateway's use case as fast as they can, one or sixteen; its model server answers at once. Measured is
how long each answer waits for the event log. A request writes a prediction of 1 KB and an observation, encrypted, in
one append. Of requests that end in one turn of the event loop each waits for the end of the turn, so for the others'
work, which would otherwise come before or after it. SQLite (WAL, synchronous=NORMAL: survives the death of the process
and, but for the last moments, a power cut) gets the same bytes, not encrypted, in one transaction per request.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.gateway.answering.answer import Answerer, AnswerSources
from services.gateway.asgi.exchange import Exchange
from services.gateway.asgi.large_work import LargeWork
from services.gateway.domain import Identifiers, PredictionIds
from services.gateway.formats.chat import ChatRequest
from services.gateway.formats.media import MediaReferences
from services.gateway.observability.metrics import Metrics
from services.gateway.recording.event_log import SpoolEventLog
from services.gateway.recording.recorder import Recorder
from services.gateway.routing.arms import ServingFlags
from services.gateway.settings import GatewaySettings
from services.gateway.tasks.served import ServedTasks
from shared.kafka.latest_by_key import LatestByKey
from shared.spool import Record, Sync
from tests.benchmarks.table import Measured, compare, report

CLIENTS = {1: "alone", 16: "of 16 at once"}
REQUESTS = 9_600
BATCH, PAIRS = 2_000, 7
SPEC = TaskSpec(name="support-desk", kind=TaskKind.GENERATION, base_model="base", system_prompt="Answer the customer.")
QUESTION = {"model": SPEC.name, "messages": [{"role": "user", "content": "x" * 360}], "user": "customer-4711"}
"""With it a prediction is 1 KB as JSON."""
_TOKEN = {"token": "t", "logprob": -0.1, "bytes": None, "top_logprobs": []}
_ANSWER = orjson.dumps({
    "id": "c", "object": "chat.completion", "created": 1, "model": "base",
    "choices": [{
        "index": 0, "message": {"role": "assistant", "content": "It is on its way."}, "finish_reason": "stop",
        "logprobs": {"content": [_TOKEN]},
    }],
    "usage": {"prompt_tokens": 120, "completion_tokens": 1, "total_tokens": 121},
})  # fmt: skip


class Sqlite:
    """An event log in SQLite, the usual way without a spool."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, topic TEXT, key BLOB, value BLOB)")

    async def append(self, records: Sequence[Record], media: object = None) -> None:
        self._connection.execute("BEGIN")
        self._connection.executemany(
            "INSERT INTO events (topic, key, value) VALUES (?, ?, ?)", [(r.topic, r.key, r.value) for r in records]
        )
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


@dataclass
class Timed:
    """An event log that measures its appends and remembers the last records."""

    log: SpoolEventLog
    seconds: list[float] = field(default_factory=list)
    last: Sequence[Record] = ()

    async def append(self, records: Sequence[Record], media: object = None) -> None:
        started = time.perf_counter()
        await self.log.append(records)
        self.seconds.append(time.perf_counter() - started)
        self.last = records


class Answers:
    """A model server that answers at once."""

    async def post(self, path: str, body: bytes, lines: bytes = b"", model: str = "") -> bytes:
        await asyncio.sleep(0)
        return _ANSWER

    def stream(self, path: str, body: bytes, lines: bytes = b"", model: str = "") -> Any:
        raise AssertionError("this benchmark does not stream")


class NoFlags:
    """Flags by which everyone gets the base model."""

    def read(self, task: str, user: str | None, subject: str | None = None) -> ServingFlags:
        return ServingFlags()


def main() -> None:
    """Run the benchmark and write its report."""
    default = GatewaySettings().gateway_spool_sync
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        sqlite = Sqlite(Path(folder) / "peer.sqlite")
        logs = {sync: runner.run(_open(Path(folder) / sync, sync)) for sync in Sync}
        for clients in CLIENTS:
            for sync, log in logs.items():
                name = f"spool, sync: {sync}{' (the default)' if sync is default else ''}"
                measured += _percentiles(name, clients, runner.run(_ask(log, clients)))
            peer = runner.run(_ask(sqlite, clients))
            measured += _percentiles("SQLite", clients, peer)
        result = compare(
            "requests' events written, one request after the other", "SQLite, WAL, NORMAL", "events/s", BATCH * 2,
            lambda: runner.run(_drive(logs[default], peer.last)), lambda: runner.run(_drive(sqlite, peer.last)), PAIRS,
        )  # fmt: skip
        for log in logs.values():
            runner.run(log.close())
        sqlite.close()
    report([result], "spool", measured)


async def _open(folder: Path, sync: Sync) -> SpoolEventLog:
    settings = GatewaySettings(home=folder, gateway_spool_sync=sync)
    log = SpoolEventLog(settings.spool_folder, settings.secrets_folder, settings.spool_options, Metrics())
    await log.start()
    return log


async def _ask(log: SpoolEventLog, clients: int) -> Timed:
    """Return how long requests of concurrent clients wait for the log."""
    timed = Timed(log)
    tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    await tasks.put(SPEC.name, TaskChanged(task=SPEC.name, task_revision=SPEC.revision, spec=SPEC))
    metrics, identifiers = Metrics(), Identifiers(PredictionIds(bytes(32)), bytes(32))
    sources, recorder = AnswerSources(Answers()), Recorder(timed, metrics, MediaReferences(bytes(32)))
    answerer = Answerer(ServedTasks(tasks, metrics), NoFlags(), sources, recorder, identifiers, LargeWork())
    answer = answerer.endpoint(ChatRequest)
    body = orjson.dumps(QUESTION)

    async def send(message: Any) -> None:
        raise AssertionError("this benchmark does not stream")

    async def client(requests: int) -> None:
        for _ in range(requests):
            exchange = Exchange([], send)
            exchange.body = body
            await answer(exchange)

    await client(200)  # Warm-up.
    timed.seconds.clear()
    await asyncio.gather(*(client(REQUESTS // clients) for _ in range(clients)))
    return timed


async def _drive(log: SpoolEventLog, records: Sequence[Record]) -> None:
    for _ in range(BATCH):
        await log.append(records)


def _percentiles(name: str, clients: int, timed: Timed) -> list[Measured]:
    cuts = statistics.quantiles(timed.seconds, n=100)
    who = f"a request {CLIENTS[clients]} waits"
    return [Measured(f"{name}: {who}, p{cut}", "µs", cuts[cut - 1] * 1e6) for cut in (50, 99)]


if __name__ == "__main__":
    main()
