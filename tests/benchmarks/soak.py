"""Events a second from the application's request to the lake, and the memory of gateway, shipper and lake writer.

Real processes and a real broker, redaction on. No two texts are the same, since the redactor remembers those that it
has seen: that sets the rate. Then as many events are sent whose texts it remembers, as a prompt that an application
always sends is. `RATCHET_SOAK_EVENTS` (default 100,000): of each. The resident memory of each process is measured ten
times, which shows a process whose memory grows with the events.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
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

EVENTS = int(os.environ.get("RATCHET_SOAK_EVENTS", "100000"))
STEPS, BATCH, CLIENTS, REMEMBERED = 10, 100, 4, 5_000
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
    texts = _distinct_texts(EVENTS)
    step = EVENTS // STEPS
    measured: list[Measured] = []
    with Progress() as progress:
        bar = progress.add_task("soak", total=2 * EVENTS)
        async with aiohttp.ClientSession() as session:
            began = time.monotonic()
            for sent in range(step, EVENTS + 1, step):
                await _send(session, url, texts[sent - step : sent])
                await asyncio.to_thread(table.wait_for, sent, 900)
                progress.update(bar, completed=sent)
                for name, pid in _with_shipper(pids).items():
                    measured.append(Measured(f"{name}, after {sent:,} events", "MiB", resident_mib(pid)))
            distinct = EVENTS / (time.monotonic() - began)
            began = time.monotonic()
            for sent in range(step, EVENTS + 1, step):
                await _send(session, url, (texts[-REMEMBERED:] * (step // REMEMBERED + 1))[:step])
                await asyncio.to_thread(table.wait_for, EVENTS + sent, 900)
                progress.update(bar, completed=EVENTS + sent)
            remembered = EVENTS / (time.monotonic() - began)
    return [
        Measured("accepted to committed, redaction on", "events/s", distinct),
        Measured("accepted to committed, of texts that the redactor remembers", "events/s", remembered),
        *sorted(measured, key=lambda row: row.name.partition(",")[0]),
    ]


def _distinct_texts(count: int) -> list[str]:
    fake = Faker()
    fake.seed_instance(20)
    return [f"{fake.name()} here, {fake.email()}, order {n}: {fake.paragraph(5)}" for n in range(count)]


def _with_shipper(pids: dict[str, int]) -> dict[str, int]:
    (shipper,) = psutil.Process(pids["gateway"]).children()
    return {**pids, "shipper": shipper.pid}


async def _send(session: aiohttp.ClientSession, url: str, texts: Sequence[str]) -> None:
    """Send a prediction for each text, `BATCH` to a request, by `CLIENTS` clients."""
    batches = iter([texts[at : at + BATCH] for at in range(0, len(texts), BATCH)])
    await asyncio.gather(*(_client(session, url, batches) for _ in range(CLIENTS)))


async def _client(session: aiohttp.ClientSession, url: str, batches: Iterator[Sequence[str]]) -> None:
    for batch in batches:
        body = [
            {
                "task": TASK,
                "messages": [{"role": "user", "content": text}],
                "answer": "It is on its way.",
                "latency_ms": 12.5,
            }
            for text in batch
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
