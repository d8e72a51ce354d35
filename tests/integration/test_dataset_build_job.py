"""The build as the process that it is, on the real database, with the real sentence encoder; and what it decides."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.conversation import Answer, Call, Message, Role
from schemas.cycles import PartitionFence, StepFailed
from schemas.datasets import DatasetBuilt, Fate, LeftOutExample
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.job import POSTGRES_VARIABLE, BuildResult
from services.dataset_builder.job_input import BuildJob
from services.dataset_builder.main import MIGRATIONS, NAME
from services.dataset_builder.storage.corrections import PostgresCorrectionStore
from shared.kafka.delivery import Delivery
from shared.settings import Settings
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.stack

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
TOPIC = "corrections.submitted.v1"
DATA = Path("deploy/demo/data/support_desk.csv")


@pytest.fixture
async def engine(stack_settings: Settings) -> AsyncIterator[AsyncEngine]:
    await migrate(stack_settings, NAME, MIGRATIONS)
    engine = build_engine(stack_settings, NAME)
    yield engine
    await engine.dispose()


@pytest.fixture
def store(engine: AsyncEngine) -> PostgresCorrectionStore:
    return PostgresCorrectionStore(engine)


def support_desk() -> list[tuple[str, str]]:
    with DATA.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def spec_of(rows: list[tuple[str, str]]) -> TaskSpec:
    labels = tuple(sorted({label for _, label in rows}))
    return TaskSpec(
        name=f"desk-{uuid4().hex[:8]}", kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=labels
    )


def correction(spec: TaskSpec, number: int, text: str, label: str, user_hash: str = "u") -> CorrectionSubmitted:
    """A correction of a prediction whose id does not have the task's random name in it.

    Hashes of the ids decide which rows are held out, and in which order the noise model gets them.
    """
    return CorrectionSubmitted(
        occurred_at=NOON + timedelta(seconds=number), task=spec.name, task_revision=spec.revision,
        correction_id=f"{spec.name}-c{number}", request_id=f"{spec.name}-r{number}",
        prediction_id=f"desk-p{number}", purpose=Purpose.LOW_CONFIDENCE, reviewer=f"reviewer-{number % 3}",
        call=Call(messages=(Message(role=Role.USER, content=text),)), answers=(Answer(text=spec.labels[0]),),
        label=label, user_hash=user_hash,
    )  # fmt: skip


async def save(store: PostgresCorrectionStore, corrections: list[CorrectionSubmitted]) -> None:
    deliveries = [Delivery(event, TOPIC, 991, number, {}) for number, event in enumerate(corrections)]
    await store.save(deliveries)
    await store.advance(deliveries)


class Build:
    """One job's folder, and its process."""

    def __init__(self, settings: Settings, home: Path, spec: TaskSpec, cycle_id: str, count: int) -> None:
        self.folder = home / "jobs" / cycle_id
        self.folder.mkdir(parents=True)
        self._postgres = settings.postgres
        fence = (PartitionFence(topic=TOPIC, partition=991, offset=count),)
        cycle = FailuresClustered(
            task=spec.name, task_revision=spec.revision, cycle_id=cycle_id, suspects=0, noise=0, modes=(),
            data_cutoff=NOON, fence=fence,
        )  # fmt: skip
        job = BuildJob(
            cycle=cycle, spec=spec, artifacts=str(home / "artifacts"), cache=home / "cache",
            slots_folder=home / "slots", models_folder=settings.models_folder,
            embedder=settings.models_folder / "all-MiniLM-L6-v2", secrets_folder=home / "secrets", traffic_hours=24,
        )  # fmt: skip
        (self.folder / "spec.json").write_text(job.model_dump_json())

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "services.dataset_builder.job_process", str(self.folder)],
                env={**os.environ, POSTGRES_VARIABLE: self._postgres}, stdout=log, stderr=log,
            )  # fmt: skip

    async def run(self) -> DatasetBuilt | StepFailed:
        process = self.start()
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == 0, (self.folder / "log.txt").read_text()
        return BuildResult.model_validate_json((self.folder / "result.json").read_bytes()).outcome

    async def has_read_all(self) -> None:
        """Wait until it has read all corrections, whichever of its processes says so first."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self._done() < 2:
                await asyncio.sleep(0.02)

    def _done(self) -> float:
        path = self.folder / "progress.json"
        return float(json.loads(path.read_bytes())["done"]) if path.exists() else 0.0


async def test_a_killed_build_ends_with_the_version_of_one_that_was_not_and_asks_about_planted_wrong_labels(
    stack_settings: Settings, store: PostgresCorrectionStore, tmp_path: Path
) -> None:
    rows = support_desk()[:400]
    spec, chance = spec_of(rows), random.Random(20)
    wrong = set(chance.sample(range(len(rows)), 40))
    given = [
        (text, chance.choice([other for other in spec.labels if other != label]) if number in wrong else label)
        for number, (text, label) in enumerate(rows)
    ]
    await save(store, [correction(spec, number, *row) for number, row in enumerate(given)])

    killed = Build(stack_settings, tmp_path, spec, f"{spec.name}-1", len(rows))
    process = killed.start()
    await killed.has_read_all()
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_SECONDS)
    assert not (killed.folder / "result.json").exists()
    first = await killed.run()
    assert isinstance(first, DatasetBuilt), first
    again = await killed.run()
    assert again == first

    lines = (Path(first.uri) / "rejected.jsonl").read_text().splitlines()
    left_out = [LeftOutExample.model_validate_json(line) for line in lines]
    held = {
        int(row.prediction_ids[0].rpartition("-p")[2])
        for row in left_out
        if (row.fate, row.reason) == (Fate.HELD_BACK, "suspicious_label")
    }
    assert len(held & wrong) >= 0.7 * len(wrong)
    assert len(held & wrong) >= 0.85 * len(held)
    lines = (killed.folder / "questions.jsonl").read_text().splitlines()
    questions = [LabelRequested.model_validate_json(line) for line in lines]
    asked = [question for question in questions if question.purpose is Purpose.SUSPICIOUS_LABEL]
    assert {int(question.prediction_id.rpartition("-p")[2]) for question in asked} == held
    gates = {gate.name: gate for gate in first.gates}
    assert gates["label_noise"].measured == pytest.approx(0.1, abs=0.05)


async def test_shuffled_labels_stop_the_build_and_say_why(
    stack_settings: Settings, store: PostgresCorrectionStore, tmp_path: Path
) -> None:
    rows = support_desk()[:300]
    spec, labels = spec_of(rows), [label for _, label in rows]
    random.Random(20).shuffle(labels)
    texts = [text for text, _ in rows]
    await save(
        store, [correction(spec, n, text, label) for n, (text, label) in enumerate(zip(texts, labels, strict=True))]
    )
    outcome = await Build(stack_settings, tmp_path, spec, f"{spec.name}-1", len(rows)).run()
    assert isinstance(outcome, StepFailed)
    assert "labels_predictable" in outcome.reason
    assert "beyond chance" in outcome.reason
    assert "mixed up" in outcome.way_out
