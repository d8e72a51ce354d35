"""Builds of large datasets, timed: corrections in a real PostgreSQL, and the job as the process that it is.

Texts are halves of two of Banking77's questions about the same intent: a million different ones, few nearly the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from schemas.conversation import Answer, Call, Message, Role
from schemas.cycles import PartitionFence
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskSpec
from services.dataset_builder.job import ENVIRONMENT, POSTGRES_VARIABLE, BuildResult
from services.dataset_builder.job_input import BuildJob
from services.dataset_builder.main import MIGRATIONS, NAME
from services.dataset_builder.storage.corrections import PostgresCorrectionStore
from shared.kafka.delivery import Delivery
from shared.settings import Settings
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from tests.benchmarks.banking77 import banking77

TOPIC = "corrections.submitted.v1"
START = datetime(2026, 11, 2, tzinfo=UTC)
_BATCH = 2_000


@dataclass(frozen=True)
class TimedBuild:
    """A build's time, the largest memory of each of its processes added up, and its outcome."""

    seconds: float
    memory_mib: float
    result: BuildResult


def mixed_questions(seed: int) -> Iterator[tuple[str, str]]:
    """Yield different (text, intent) without end: the first half of one question and the second half of another."""
    chance = random.Random(seed)
    by_label: dict[str, list[list[str]]] = {}
    for text, label in banking77("train"):
        by_label.setdefault(label, []).append(text.split())
    labels, seen = sorted(by_label), set[str]()
    while True:
        label = chance.choice(labels)
        first, second = chance.choice(by_label[label]), chance.choice(by_label[label])
        text = " ".join([*first[: (len(first) + 1) // 2], *second[len(second) // 2 :]])
        if text not in seen:
            seen.add(text)
            yield text, label


def near_copies(count: int) -> Iterator[tuple[str, str]]:
    """Yield texts of one template that differ in a number and a word: a loud failure mode."""
    for number in range(count):
        day = ("Monday", "Tuesday", "Friday")[number % 3]
        yield f"My transfer {number:06} of {day} has still not arrived, why is it pending?", "pending_transfer"


def corrections(
    spec: TaskSpec, rows: Sequence[tuple[str, str]], start: int = 0, turns: int = 1
) -> Iterator[CorrectionSubmitted]:
    """Yield a correction for each (text, label), numbered from `start`, of fifty users and ten reviewers.

    `turns`: each text ends a conversation of so many questions, the others being those of other rows.
    """
    for number, (text, label) in enumerate(rows, start):
        messages = (Message(role=Role.SYSTEM, content=spec.system_prompt),)
        for turn in range(1, turns):
            asked = rows[(number * turn + turn) % len(rows)][0]
            messages += (Message(role=Role.USER, content=asked), Message(role=Role.ASSISTANT, content=f"{asked} Done."))
        messages += (Message(role=Role.USER, content=text),)
        yield CorrectionSubmitted(
            occurred_at=START + timedelta(seconds=number),
            task=spec.name,
            task_revision=spec.revision,
            correction_id=f"{spec.name}-c{number}",
            request_id=f"{spec.name}-r{number}",
            prediction_id=f"{spec.name}-p{number}",
            purpose=Purpose.LOW_CONFIDENCE,
            reviewer=f"reviewer-{number % 10}",
            call=Call(messages=messages, constrained=True),
            answers=(Answer(text=spec.labels[number % len(spec.labels)]),),
            label=label,
            user_hash=f"user-{number % 5_000}",
            predicted_at=START,
        )


def store(settings: Settings, spec: TaskSpec, rows: Sequence[tuple[str, str]], start: int = 0, turns: int = 1) -> None:
    """Store corrections as the service does; their offsets are their numbers."""

    async def save() -> None:
        await migrate(settings, NAME, MIGRATIONS)
        engine = build_engine(settings, NAME)
        stored = PostgresCorrectionStore(engine)
        made = corrections(spec, rows, start, turns)
        offset = start
        while batch := list(islice(made, _BATCH)):
            deliveries = [Delivery(event, TOPIC, 0, offset + n, {}) for n, event in enumerate(batch)]
            await stored.save(deliveries)
            await stored.advance(deliveries)
            offset += len(batch)
        await engine.dispose()

    asyncio.run(save())


def timed_build(settings: Settings, spec: TaskSpec, cycle_id: str, count: int) -> TimedBuild:
    """Run the job of a cycle with the first `count` corrections."""
    folder = settings.home / "jobs" / cycle_id
    folder.mkdir(parents=True)
    fence = (PartitionFence(topic=TOPIC, partition=0, offset=count),)
    cycle = FailuresClustered(
        task=spec.name, task_revision=spec.revision, cycle_id=cycle_id, suspects=0, noise=0, modes=(),
        data_cutoff=START, fence=fence,
    )  # fmt: skip
    job = BuildJob(
        cycle=cycle,
        spec=spec,
        artifacts=settings.artifacts_uri,
        cache=settings.home / "cache",
        slots_folder=settings.home / "slots",
        models_folder=settings.models_folder,
        embedder=settings.models_folder / "all-MiniLM-L6-v2",
        secrets_folder=settings.secrets_folder,
        traffic_hours=24,
    )
    (folder / "spec.json").write_text(job.model_dump_json())
    started = time.perf_counter()
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.dataset_builder.job_process", str(folder)],
            env={**os.environ, **ENVIRONMENT, POSTGRES_VARIABLE: settings.postgres},
            stdout=log,
            stderr=log,
        )
        memory: dict[int, int] = {}
        while (status := process.poll()) is None:
            memory |= _largest_memory(process.pid)
            time.sleep(0.05)
    seconds = time.perf_counter() - started
    if status or not (folder / "result.json").exists():
        failure = folder / "failure.json"
        raise SystemExit(f"{cycle_id} failed: {failure.read_text() if failure.exists() else folder / 'log.txt'}")
    result = BuildResult.model_validate_json((folder / "result.json").read_bytes())
    return TimedBuild(seconds, sum(memory.values()) / 1024, result)


def _largest_memory(pid: int) -> dict[int, int]:
    """Return the largest resident memory so far of a process and its children, in KiB: the sum is an upper bound."""
    found = {}
    with contextlib.suppress(OSError, IndexError):  # One of them has ended.
        children = (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()
        for process in (pid, *map(int, children)):
            status = (Path("/proc") / str(process) / "status").read_text()
            found[process] = int(status.partition("VmHWM:")[2].split()[0])
    return found
