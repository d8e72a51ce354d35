"""The event log's rate from a producer to committed Delta rows, against a plain Kafka-to-Parquet loop in the same run.

Broker, producer and writer share this machine. On the same broker, `RATCHET_BENCH_EVENTS` (default 200,000)
events of 1 KB go to the real service, then as many to the plain loop. Freshness is measured at a steady rate: from each
event's time stamp to the commit that holds it.
"""

from __future__ import annotations

import os
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from shared.settings import Settings
from tests.benchmarks.pipeline import TASK, Commit, DeltaLog, private_broker, process, produce, resident_mib
from tests.benchmarks.table import Measured, Result, report

EVENTS = int(os.environ.get("RATCHET_BENCH_EVENTS", "200000"))
ROUNDS = 3
BATCH = 20_000
STEADY_RATE, STEADY_SECONDS = 2_000, 30
TOPIC = "predictions.logged.v1"


def main() -> None:
    """Run the benchmark and write its report."""
    with private_broker("log") as (settings, env):
        logs = settings.home / "logs"
        logs.mkdir(exist_ok=True)
        plain_folder = settings.home / "plain"
        plain_folder.mkdir()
        table = DeltaLog(Path(settings.lake_uri) / "predictions")
        with process(["-m", "services.prediction_log.main"], env, logs / "writer.log") as writer:
            produce(settings, TOPIC, 1_000)  # Creates the table and warms up the code.
            table.wait_for(1_000, 120)
            ours, peers, memory = [], [], []
            for number in range(ROUNDS):
                ours.append(_ours(settings, table))
                memory.append(resident_mib(writer.pid))
                peers.append(_peer(settings, env, f"bench.plain.{number}", plain_folder, logs / "plain.log"))
            before, goal = len(table.commits), table.rows + STEADY_RATE * STEADY_SECONDS
            produce(settings, TOPIC, STEADY_RATE * STEADY_SECONDS, STEADY_RATE)
            table.wait_for(goal, 60)
            fresh = _freshness(table.table, table.commits[before:])
    p50, p99 = (float(q) for q in np.quantile(fresh, (0.5, 0.99)))
    ratio = statistics.median(a / b for a, b in zip(ours, peers, strict=True))
    rate = Result(
        "producer to committed rows, 1 KB", "events/s", statistics.median(ours), statistics.median(peers), ratio,
        "confluent-kafka to Parquet, no exactly-once", ROUNDS,
    )  # fmt: skip
    report(
        [rate], "log",
        [
            Measured(f"freshness p50, {STEADY_RATE:,} events/s", "s", p50),
            Measured(f"freshness p99, {STEADY_RATE:,} events/s", "s", p99),
            *(Measured(f"writer's memory after {EVENTS * (n + 1):,} events", "MiB", m) for n, m in enumerate(memory)),
        ],
    )  # fmt: skip


def _ours(settings: Settings, table: DeltaLog) -> float:
    """Return events per second, from the producer's first event to the last commit."""
    table.refresh()
    goal = table.rows + EVENTS
    began = produce(settings, TOPIC, EVENTS)
    return EVENTS / (table.wait_for(goal, 300) - began)


def _peer(settings: Settings, env: dict[str, str], topic: str, folder: Path, log: Path) -> float:
    admin = KafkaAdminClient(bootstrap_servers=settings.kafka)
    admin.create_topics([NewTopic(topic, num_partitions=8, replication_factor=1)])
    admin.close()
    log.write_text("")
    arguments = ["-m", "tests.benchmarks.plain_loop", settings.kafka, topic, str(folder), str(BATCH)]
    with process(arguments, env, log):
        produce(settings, topic, 1_000)
        _printed(log, 1_000)
        began = produce(settings, topic, EVENTS)
        return EVENTS / (_printed(log, EVENTS + 1_000) - began)


def _printed(log: Path, rows: int) -> float:
    """Return when the plain loop reported `rows` rows written. Raises TimeoutError."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        lines = [line.split() for line in log.read_text().splitlines() if line[:1].isdigit()]
        if lines and int(lines[-1][0]) >= rows:
            return float(lines[-1][1])
        time.sleep(0.05)
    raise TimeoutError(f"the plain loop did not write {rows} rows: {log.read_text()[-500:]}")


def _freshness(table: Path, commits: list[Commit]) -> list[float]:
    """Return the seconds from each event's `occurred_at` to the commit that made it visible."""
    seconds: list[float] = []
    for commit in commits:
        at = datetime.fromtimestamp(commit.at, UTC)
        for file in commit.files:
            column: list[Any] = pq.read_table(table / file, columns=["occurred_at"])["occurred_at"].to_pylist()
            seconds.extend((at - occurred).total_seconds() for occurred in column)
    assert len(seconds) == STEADY_RATE * STEADY_SECONDS, f"{len(seconds)} rows of task {TASK}"
    return seconds


if __name__ == "__main__":
    main()
