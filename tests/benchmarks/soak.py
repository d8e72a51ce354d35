"""The memory of gateway, shipper and lake writer over a million events, from the application's request to the lake.

Real processes and a real broker, redaction on. `RATCHET_SOAK_EVENTS` (default 1,000,000). The resident memory of each
process is measured ten times, which shows a process whose memory grows with the events.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from pathlib import Path

import aiohttp
import psutil
from faker import Faker
from rich.progress import Progress

from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from shared.kafka.broker import build_broker
from shared.kafka.publisher import Publisher
from shared.settings import Settings
from tests.benchmarks.pipeline import TASK, DeltaLog, private_broker, process, resident_mib
from tests.benchmarks.table import Measured, report

EVENTS = int(os.environ.get("RATCHET_SOAK_EVENTS", "1000000"))
STEPS, BATCH, CLIENTS, TEXTS = 10, 100, 4, 5_000
SPEC = TaskSpec(name=TASK, kind=TaskKind.GENERATION, system_prompt="Answer the customer.")


def main() -> None:
    """Run the benchmark and write its report."""
    with private_broker("soak") as (settings, env):
        asyncio.run(_announce_task(settings))
        logs = settings.home / "logs"
        logs.mkdir(exist_ok=True)
        table = DeltaLog(Path(settings.lake_uri) / "predictions")
        with (
            process(["-m", "services.prediction_log.main"], env, logs / "writer.log") as writer,
            process(["-m", "services.gateway.main"], env, logs / "gateway.log") as gateway,
        ):
            url = f"http://127.0.0.1:{env['RATCHET_GATEWAY_PORT']}/v1/predictions"
            rows = asyncio.run(_soak(url, table, {"gateway": gateway.pid, "writer": writer.pid}))
    report([], "soak", rows)


async def _announce_task(settings: Settings) -> None:
    broker = build_broker(settings, "scheduler")
    await broker.start()
    await Publisher(broker, "scheduler").publish(TaskChanged(task=TASK, task_revision=SPEC.revision, spec=SPEC))
    await broker.stop()


async def _soak(url: str, table: DeltaLog, pids: dict[str, int]) -> list[Measured]:
    fake = Faker()
    fake.seed_instance(20)
    texts = [f"{fake.name()} here, {fake.email()}: {fake.paragraph(5)}" for _ in range(TEXTS)]
    measured: list[Measured] = []
    began = time.monotonic()
    with Progress() as progress:
        bar = progress.add_task("soak", total=EVENTS)
        async with aiohttp.ClientSession() as session:
            for step in range(1, STEPS + 1):
                counter = itertools.count(1)
                goal = EVENTS // STEPS // BATCH
                await asyncio.gather(*(_client(session, url, texts, counter, goal) for _ in range(CLIENTS)))
                await asyncio.to_thread(table.wait_for, EVENTS // STEPS * step, 900)
                progress.update(bar, completed=EVENTS // STEPS * step)
                for name, pid in _with_shipper(pids).items():
                    measured.append(
                        Measured(f"{name}, after {EVENTS // STEPS * step:,} events", "MiB", resident_mib(pid))
                    )
    measured.append(Measured("accepted to committed, redaction on", "events/s", EVENTS / (time.monotonic() - began)))
    return sorted(measured, key=lambda row: row.name.partition(",")[0])


def _with_shipper(pids: dict[str, int]) -> dict[str, int]:
    (shipper,) = psutil.Process(pids["gateway"]).children()
    return {**pids, "shipper": shipper.pid}


async def _client(
    session: aiohttp.ClientSession, url: str, texts: list[str], counter: itertools.count[int], goal: int
) -> None:
    while next(counter) <= goal:
        body = [
            {
                "task": TASK,
                "messages": [{"role": "user", "content": random.choice(texts)}],
                "answer": "It is on its way.",
                "latency_ms": 12.5,
            }
            for _ in range(BATCH)
        ]
        while True:  # The gateway refuses while it starts or its spool is full; the same batch is sent again.
            try:
                async with session.post(url, json=body) as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    main()
