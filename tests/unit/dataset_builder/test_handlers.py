"""The handlers on an in-memory broker, and their job in this process: a cycle gives a version, or a reason why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from faststream.kafka import TestKafkaBroker

from schemas.base import CheckResult, Event, Gate
from schemas.conversation import Answer, Call, Message, Role, ToolCall
from schemas.cycles import CycleFinished, PartitionFence, StepFailed, StepProgressed
from schemas.datasets import DatasetBuilt, DatasetManifest, Example
from schemas.failures import ExemplarSource, FailureMode, FailuresClustered
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import PredictionsRolledUp, SubjectForgotten
from schemas.quality import QualityReport
from schemas.task_settings import DatasetSettings
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.dataset_builder.building.carry_over import Revision
from services.dataset_builder.building.personal_data import PersonalData
from services.dataset_builder.building.places import Places
from services.dataset_builder.handlers import Handlers
from services.dataset_builder.inspection.gates import evaluate_gates
from services.dataset_builder.job import build_version, job_name, read_questions
from services.dataset_builder.job_input import BuildJob, embeddings_file
from services.dataset_builder.pipeline import Build, Inputs, build_dataset
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.storage.corrections import SaveOutcome, SearchedCorrections, StoredCorrections
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.jobs import Job, JobFailure, JobProgress, Jobs, Progress
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.delivery import Delivery, RecordPosition, TopicPartition
from shared.privacy.redaction import Redactor, Rules
from shared.privacy.redaction.spans import TextSpan
from shared.storage.artifacts import ArtifactStore

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
TOPIC = "corrections.submitted.v1"
FENCE = tuple(
    PartitionFence(topic=topic, partition=0, offset=1_000)
    for topic in (TOPIC, "feedback.given.v1", "predictions.logged.v1", "subjects.forgotten.v1")
)
SPEC = TaskSpec(
    name="support-desk",
    kind=TaskKind.CLASSIFICATION,
    system_prompt="Intent?",
    labels=("refund", "delivery"),
    dataset=DatasetSettings(min_examples=5),
)


ROLLED_UP = next(Path("schemas/examples/predictions.rolled_up.v1").glob("*.json")).read_bytes()
RunCycle = Callable[..., Awaitable[None]]


class Published:
    """A publisher that records events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def publish(self, event: Event) -> None:
        self.events.append(event)


class MemoryStore:
    """PostgresCorrectionStore and PostgresTrafficStore in memory, as far as the handlers use them."""

    def __init__(self) -> None:
        self.rows: dict[str, CorrectionSubmitted] = {}
        self.outcomes: dict[str, Event] = {}
        self.decided: Places = {}
        self.not_read: list[PartitionFence] = []
        self.skipped: list[RecordPosition | Delivery[Any]] = []
        self.hours: list[PredictionsRolledUp] = []
        self.failed: set[str] = set()
        self.known: dict[str, Revision] = {}
        self.is_clear: dict[str, str] = {}

    async def save(self, deliveries: Sequence[Delivery[CorrectionSubmitted]]) -> None:
        for delivery in deliveries:
            self.rows.setdefault(delivery.event.correction_id, delivery.event)

    async def save_revision(self, event: TaskChanged) -> None:
        self.known[event.spec.revision] = Revision(event.spec.kind, event.spec.system_prompt, event.spec.answer_form)

    async def revisions(self, task: str) -> dict[str, Revision]:
        return self.known

    async def save_clear(self, rules: str, correction_ids: Sequence[str]) -> None:
        self.is_clear |= dict.fromkeys(correction_ids, rules)

    async def corrections_of(self, prediction_ids: Iterable[str]) -> list[CorrectionSubmitted]:
        wanted = set(prediction_ids)
        return [row for row in self.rows.values() if row.prediction_id in wanted]

    async def advance(self, deliveries: Sequence[Delivery[Any]]) -> None: ...

    async def skip(self, position: RecordPosition | Delivery[Any]) -> None:
        self.skipped.append(position)

    async def next_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {}

    async def forget(self, event: SubjectForgotten) -> None:
        self.rows = {k: row for k, row in self.rows.items() if row.user_hash != event.subject_hash}

    async def save_hour(self, event: PredictionsRolledUp) -> None:
        self.hours.append(event)

    async def answer_counts(self, task: str, revision: str, hours: int) -> dict[str, int]:
        return {"refund": 10, "delivery": 10}

    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]:
        return [part for part in fence if part in self.not_read]

    async def corrections_below(
        self, task: str, fence: Sequence[PartitionFence], rules: str
    ) -> AsyncIterator[SearchedCorrections]:
        yield self.searched(list(self.rows.values()), rules)

    def searched(self, rows: Sequence[CorrectionSubmitted], rules: str) -> SearchedCorrections:
        clear = [row for row in rows if self.is_clear.get(row.correction_id) == rules]
        others = [row for row in rows if self.is_clear.get(row.correction_id) != rules]
        return SearchedCorrections(StoredCorrections(clear), StoredCorrections(others))

    async def count_below(self, task: str, fence: Sequence[PartitionFence]) -> int:
        return len(self.rows)

    async def outcome(self, cycle_id: str) -> Event | None:
        return self.outcomes.get(cycle_id)

    async def last_version(self, task: str) -> tuple[DatasetBuilt, bool] | None:
        built = [event for event in self.outcomes.values() if isinstance(event, DatasetBuilt)]
        return (built[-1], built[-1].cycle_id in self.failed) if built else None

    async def save_end(self, event: CycleFinished) -> None:
        if event.outcome == "failed":
            self.failed.add(str(event.cycle_id))

    async def places(self, task: str) -> Places:
        return self.decided

    async def save_outcome(self, event: Event) -> None:
        self.outcomes.setdefault(str(event.cycle_id), event)

    @asynccontextmanager
    async def concluding(
        self, task: str, fence: Sequence[PartitionFence], count: int
    ) -> AsyncIterator[SaveOutcome | None]:
        yield self._conclude if len(self.rows) == count else None

    async def _conclude(self, event: Event, places: Places) -> None:
        self.outcomes.setdefault(str(event.cycle_id), event)
        new = places if isinstance(event, DatasetBuilt) else {}
        self.decided = {**self.decided, **new}


def correction(number: int, label: str, reviewer: str = "ana", user_hash: str | None = None) -> CorrectionSubmitted:
    words = ("parcel", "invoice", "refund", "account", "password", "address", "voucher")
    text = f"{words[number % 7]} {number * 7919} {words[(number * 3 + 1) % 7]} went wrong {chr(97 + number % 26) * 6}"
    return CorrectionSubmitted(
        occurred_at=NOON + timedelta(seconds=number),
        task=SPEC.name,
        task_revision=SPEC.revision,
        correction_id=f"c{number}-{reviewer}",
        request_id=f"r{number}",
        prediction_id=f"p{number}",
        purpose=Purpose.LOW_CONFIDENCE,
        reviewer=reviewer,
        call=Call(messages=(Message(role=Role.SYSTEM, content="Intent?"), Message(role=Role.USER, content=text))),
        answers=(Answer(text="refund"),),
        label=label,
        user_hash=user_hash,
    )


def delivered(*events: CorrectionSubmitted) -> list[Delivery[CorrectionSubmitted]]:
    return [Delivery(event, TOPIC, 0, i, {}) for i, event in enumerate(events)]


def clustered(cycle_id: str | None = "cycle-1", revision: str = SPEC.revision) -> FailuresClustered:
    return FailuresClustered(
        task=SPEC.name, task_revision=revision, cycle_id=cycle_id, suspects=0, noise=0, modes=(), data_cutoff=NOON,
        fence=FENCE, occurred_at=NOON,
    )  # fmt: skip


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
async def handlers(tmp_path: Path, store: MemoryStore, published: Published) -> AsyncIterator[Handlers]:
    settings = DatasetBuilderSettings(home=tmp_path)
    jobs = Jobs(settings.jobs_folder, "services.dataset_builder.job_process")
    made = Handlers(settings, store, store, jobs, published, now=lambda: NOON)
    broker = build_broker(settings, "dataset_builder")
    made.subscribe(Consumers(broker, "dataset_builder", settings))
    async with TestKafkaBroker(broker) as test:
        task = TaskChanged(task=SPEC.name, task_revision=SPEC.revision, spec=SPEC)
        await test.publish(task.model_dump_json().encode(), "tasks.changed.v1")
        made.broker = test  # type: ignore[attr-defined]
        yield made


@pytest.fixture
def run_cycle(handlers: Handlers, store: MemoryStore, tmp_path: Path) -> RunCycle:
    """Hand a cycle to the handlers, and do in this process what they do with its job."""

    async def run(event: FailuresClustered | None = None) -> None:
        event = event or clustered()
        await handlers.on_clustered(event)
        job = job_of(tmp_path, event)
        if not (job.folder / "spec.json").exists():
            return
        spec = BuildJob.model_validate_json(job.spec)
        artifacts = ArtifactStore(spec.artifacts, spec.cache)
        result = await build_version(spec, store, store, artifacts, job.folder, Progress(job.folder))
        await handlers.on_done(job, result.model_dump_json().encode())

    return run


def job_of(home: Path, event: FailuresClustered) -> Job:
    return Job(job_name(event), home / "jobs" / "dataset_builder" / job_name(event))


async def submitted(handlers: Handlers, home: Path) -> tuple[Job, BuildJob, ArtifactStore]:
    """Hand a cycle to the handlers. Returns what the process of its job starts from."""
    await handlers.on_clustered(clustered())
    job = job_of(home, clustered())
    spec = BuildJob.model_validate_json(job.spec)
    return job, spec, ArtifactStore(spec.artifacts, spec.cache)


async def filled(handlers: Handlers, count: int = 30) -> None:
    await handlers.on_corrections(delivered(*(correction(i, SPEC.labels[i % 2]) for i in range(count))))


async def test_a_cycle_makes_a_dataset_that_reads_back(
    handlers: Handlers, run_cycle: RunCycle, published: Published, tmp_path: Path
) -> None:
    await filled(handlers)
    await run_cycle()
    (built,) = published.events
    assert isinstance(built, DatasetBuilt)
    folder = Path(built.uri)
    train = [Example.model_validate_json(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    held_out = [Example.model_validate_json(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    manifest = DatasetManifest.model_validate_json((folder / "manifest.json").read_text())
    assert (len(train), len(held_out)) == (built.train_examples, built.eval_examples)
    assert len(train) + len(held_out) == 30
    assert manifest.dataset_id == built.dataset_id == folder.name
    assert sum(manifest.labels.values()) == len(train)
    assert {gate.name for gate in manifest.gates} >= {"min_examples", "label_distribution"}
    assert train[0].messages[-1].role == Role.ASSISTANT


async def test_a_conversation_with_tools_reads_back_with_its_structure_and_a_truncated_one_only_as_rejected(
    handlers: Handlers, run_cycle: RunCycle, published: Published
) -> None:
    await filled(handlers)
    talk = Call(
        messages=(
            Message(role=Role.USER, content="Where is 4711?"),
            Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="find", arguments='{"n": 1}', id="c1"),)),
            Message(role=Role.TOOL, content="on its way", tool_call_id="c1"),
        ),
        tools=({"type": "function", "function": {"name": "find"}},),
    )
    whole = correction(91, "delivery").model_copy(update={"call": talk})
    cut = correction(92, "delivery").model_copy(update={"call": talk.model_copy(update={"truncated": True})})
    await handlers.on_corrections(delivered(whole, cut))
    await run_cycle()
    (built,) = published.events
    assert isinstance(built, DatasetBuilt)
    files = {name: (Path(built.uri) / f"{name}.jsonl").read_text() for name in ("train", "eval", "rejected")}
    examples = [Example.model_validate_json(s) for s in (files["train"] + files["eval"]).splitlines()]
    (example,) = [e for e in examples if e.prediction_ids == ("p91",)]
    assert (example.prompt, example.tools, example.answer) == (talk.messages, talk.tools, "delivery")
    assert [(json.loads(s)["reason"], json.loads(s)["prediction_ids"]) for s in files["rejected"].splitlines()] == [
        ("truncated", ["p92"])
    ]


async def test_a_redelivered_cycle_publishes_the_same_event(
    handlers: Handlers, run_cycle: RunCycle, published: Published
) -> None:
    await filled(handlers)
    await run_cycle()
    await filled(handlers, 60)
    await handlers.on_clustered(clustered())
    assert published.events[0] == published.events[1]


async def apply(handlers: Handlers, **dataset: int) -> None:
    """Apply the task with other settings of its dataset."""
    spec = SPEC.model_copy(update={"dataset": SPEC.dataset.model_copy(update=dataset)})
    changed = TaskChanged(task=SPEC.name, task_revision=SPEC.revision, spec=spec)
    await handlers.broker.publish(changed.model_dump_json().encode(), "tasks.changed.v1")  # type: ignore[attr-defined]


async def test_the_same_rows_have_the_same_name_in_another_cycle(
    handlers: Handlers, run_cycle: RunCycle, published: Published
) -> None:
    await apply(handlers, min_new_examples=0)
    await filled(handlers)
    await run_cycle(clustered("cycle-1"))
    await run_cycle(clustered("cycle-2"))
    first, second = published.events
    assert isinstance(first, DatasetBuilt)
    assert isinstance(second, DatasetBuilt)
    assert first.dataset_id == second.dataset_id
    assert first.event_id != second.event_id
    assert (first.parent, second.parent) == (None, None)


async def test_a_cycle_with_too_little_new_is_skipped_and_says_how_much_there_is(
    handlers: Handlers, run_cycle: RunCycle, published: Published, tmp_path: Path
) -> None:
    await filled(handlers)
    await run_cycle(clustered("cycle-1"))
    await filled(handlers, 33)
    await run_cycle(clustered("cycle-2"))
    built, skipped = published.events
    assert isinstance(built, DatasetBuilt)
    assert isinstance(skipped, StepFailed)
    assert skipped.skipped
    assert skipped.reason.startswith(f"3 examples are new or changed since {built.dataset_id}, and 10 are wanted")
    assert not (tmp_path / "artifacts" / "inspections").exists()


async def test_a_version_with_enough_new_names_its_parent_and_what_changed(
    handlers: Handlers, run_cycle: RunCycle, published: Published
) -> None:
    await filled(handlers)
    await run_cycle(clustered("cycle-1"))
    await filled(handlers, 45)
    await run_cycle(clustered("cycle-2"))
    first, second = published.events
    assert isinstance(first, DatasetBuilt)
    assert isinstance(second, DatasetBuilt)
    manifest = DatasetManifest.model_validate_json((Path(second.uri) / "manifest.json").read_text())
    report = QualityReport.model_validate_json((Path(second.uri) / "quality.json").read_text())
    assert (first.parent, second.parent, manifest.parent, report.parent) == (None, *[first.dataset_id] * 3)
    assert report.changes is not None
    assert (report.changes.added, report.changes.removed) == (15, 0)


async def test_one_forgotten_row_is_reason_enough_for_a_version_without_it(
    handlers: Handlers, run_cycle: RunCycle, published: Published, tmp_path: Path
) -> None:
    rows = [correction(i, SPEC.labels[i % 2], user_hash="u1" if i == 4 else "u2") for i in range(30)]
    await handlers.on_corrections(delivered(*rows))
    await run_cycle(clustered("cycle-1"))
    vectors = embeddings_file(tmp_path / "cache", SPEC.name)
    vectors.parent.mkdir(parents=True, exist_ok=True)
    vectors.write_bytes(b"of everybody's texts")
    half_written = vectors.with_name(f".{vectors.name}.abcd")
    half_written.write_bytes(b"of everybody's te")
    forgotten = SubjectForgotten(task=SPEC.name, task_revision=SPEC.revision, subject_hash="u1")
    await handlers.broker.publish(forgotten.model_dump_json().encode(), "subjects.forgotten.v1")  # type: ignore[attr-defined]
    assert not vectors.exists() and not half_written.exists()
    await run_cycle(clustered("cycle-2"))
    first, second = published.events
    assert isinstance(first, DatasetBuilt)
    assert isinstance(second, DatasetBuilt)
    assert second.parent == first.dataset_id
    assert f"Inspection of {second.dataset_id}" in (Path(second.uri) / "quality.html").read_text()
    files = ("train.jsonl", "eval.jsonl", "rejected.jsonl", "quality.json", "quality.html")
    assert not [name for name in files if "u1" in (text := (Path(second.uri) / name).read_text()) or '"p4"' in text]


async def test_a_changed_setting_is_built_with_however_little_is_new(
    handlers: Handlers, run_cycle: RunCycle, published: Published
) -> None:
    await filled(handlers)
    await run_cycle(clustered("cycle-1"))
    await apply(handlers, min_examples=6)
    await run_cycle(clustered("cycle-2"))
    assert [type(event) for event in published.events] == [DatasetBuilt, DatasetBuilt]


@pytest.mark.parametrize(("outcome", "second"), [("failed", DatasetBuilt), ("rejected", StepFailed)])
async def test_a_cycle_after_one_that_failed_is_not_skipped(
    handlers: Handlers, run_cycle: RunCycle, published: Published, outcome: str, second: type[Event]
) -> None:
    """Its training may have broken off: whoever starts the cycle again wants it to learn from the same rows."""
    await filled(handlers)
    await run_cycle(clustered("cycle-1"))
    ended = CycleFinished(
        task=SPEC.name, task_revision=SPEC.revision, cycle_id="cycle-1", outcome=outcome, reason="r", seconds=1.0
    )
    await handlers.broker.publish(ended.model_dump_json().encode(), "cycles.finished.v1")  # type: ignore[attr-defined]
    await run_cycle(clustered("cycle-2"))
    assert isinstance(published.events[-1], second)


@pytest.mark.parametrize("outcome", ["failed", "rejected"])
async def test_the_build_of_a_cycle_that_a_person_ended_ends(handlers: Handlers, tmp_path: Path, outcome: str) -> None:
    await filled(handlers)
    cycle = clustered("cycle-1")
    await handlers.on_clustered(cycle)
    ended = CycleFinished(
        task=SPEC.name, task_revision=SPEC.revision, cycle_id="cycle-1", outcome=outcome, reason="r", seconds=1.0
    )
    await handlers.broker.publish(ended.model_dump_json().encode(), "cycles.finished.v1")  # type: ignore[attr-defined]
    assert (job_of(tmp_path, cycle).folder / "announced").exists() is (outcome == "failed")


async def test_failures_that_are_read_after_the_end_of_their_cycle_are_not_built_from(
    handlers: Handlers, tmp_path: Path
) -> None:
    await filled(handlers)
    cycle = clustered("cycle-1")
    ended = CycleFinished(
        task=SPEC.name, task_revision=SPEC.revision, cycle_id="cycle-1", outcome="failed", reason="r", seconds=1.0
    )
    await handlers.broker.publish(ended.model_dump_json().encode(), "cycles.finished.v1")  # type: ignore[attr-defined]
    await handlers.on_clustered(cycle)
    assert not job_of(tmp_path, cycle).folder.exists()


async def test_a_version_whose_parent_was_deleted_is_built_and_compared_with_nothing(
    handlers: Handlers, run_cycle: RunCycle, published: Published
) -> None:
    await filled(handlers)
    await run_cycle(clustered("cycle-1"))
    (first,) = published.events
    assert isinstance(first, DatasetBuilt)
    shutil.rmtree(first.uri)
    await filled(handlers, 32)
    await run_cycle(clustered("cycle-2"))
    second = published.events[-1]
    assert isinstance(second, DatasetBuilt)
    report = QualityReport.model_validate_json((Path(second.uri) / "quality.json").read_text())
    assert (report.parent, report.changes) == (first.dataset_id, None)


async def test_a_build_that_a_gate_stops_leaves_its_inspection_and_no_version(
    handlers: Handlers, run_cycle: RunCycle, published: Published, tmp_path: Path
) -> None:
    await filled(handlers, 3)
    await handlers.on_corrections(delivered(correction(9, "no such label", user_hash="u9")))
    await run_cycle()
    (failed,) = published.events
    assert isinstance(failed, StepFailed)
    folder = Path(str(failed.report))
    assert folder == tmp_path / "artifacts" / "inspections" / "cycle-1"
    assert not (tmp_path / "artifacts" / "datasets").exists()
    report = QualityReport.model_validate_json((folder / "quality.json").read_text())
    assert (report.passed, report.dataset_id) == (False, None)
    failures = {check.name for check in report.checks if check.result is CheckResult.FAILED}
    assert "min_examples" in failures
    assert all(name in failed.reason for name in failures)
    page = (folder / "quality.html").read_text()
    assert "Stopped." in page
    assert "Inspection of cycle-1" in page and str(tmp_path) not in page, "it may be published anywhere"
    (rejected,) = (folder / "rejected.jsonl").read_text().splitlines()
    assert (json.loads(rejected)["reason"], json.loads(rejected)["user_hash"]) == ("unknown_label", "u9")
    assert [(sample.prediction_id, sample.user_hash) for sample in report.samples] == [("p9", "u9")]


async def test_too_few_examples_fail_the_step_with_numbers_and_a_way_out(
    handlers: Handlers, run_cycle: RunCycle, published: Published
) -> None:
    await filled(handlers, 3)
    await run_cycle()
    (failed,) = published.events
    assert isinstance(failed, StepFailed)
    assert failed.step == "dataset"
    assert "required >= 5 training examples" in failed.reason
    assert "min_examples" in failed.way_out


async def test_no_corrections_at_all_fail_the_step(
    handlers: Handlers, run_cycle: RunCycle, published: Published
) -> None:
    await run_cycle()
    assert isinstance(published.events[0], StepFailed)


@pytest.mark.parametrize("topic", [TOPIC, "feedback.given.v1", "subjects.forgotten.v1"])
async def test_a_build_waits_for_corrections_and_erasures_below_the_fence(
    handlers: Handlers, store: MemoryStore, tmp_path: Path, topic: str
) -> None:
    store.not_read = [part for part in FENCE if part.topic == topic]
    with pytest.raises(DependencyUnavailable, match=topic):
        await handlers.on_clustered(clustered())
    assert not job_of(tmp_path, clustered()).folder.exists()


async def test_a_cycle_that_was_started_without_erasures_in_its_fence_goes_on(
    handlers: Handlers, run_cycle: RunCycle, store: MemoryStore, published: Published
) -> None:
    await filled(handlers)
    store.not_read = [part for part in FENCE if part.topic == "subjects.forgotten.v1"]
    await run_cycle(clustered().model_copy(update={"fence": FENCE[:3]}))
    assert isinstance(published.events[0], DatasetBuilt)


async def test_a_job_that_starts_on_a_database_that_was_restored_waits_until_all_is_read_again(
    handlers: Handlers, run_cycle: RunCycle, store: MemoryStore, published: Published, tmp_path: Path
) -> None:
    """Its step found all inputs read, and then the database went back to a time before an erasure."""
    await filled(handlers)
    await handlers.on_clustered(clustered())
    store.not_read = [part for part in FENCE if part.topic == "subjects.forgotten.v1"]
    job = job_of(tmp_path, clustered())
    spec = BuildJob.model_validate_json(job.spec)
    artifacts, progress = ArtifactStore(spec.artifacts, spec.cache), Progress(job.folder)
    with pytest.raises(DependencyUnavailable, match=r"subjects\.forgotten"):
        await build_version(spec, store, store, artifacts, job.folder, progress)
    store.not_read = []
    result = await build_version(spec, store, store, artifacts, job.folder, progress)
    assert isinstance(result.outcome, DatasetBuilt)


async def test_who_is_erased_while_a_build_is_checked_is_not_in_what_it_publishes(
    handlers: Handlers, store: MemoryStore, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(handlers)
    forgotten = correction(1, "refund", user_hash="hash-of-eve")
    store.rows[forgotten.correction_id] = forgotten
    gates_of = evaluate_gates

    def erase_and_evaluate(
        build: Build, spec: TaskSpec, answers: Mapping[str, int], found: PersonalData
    ) -> tuple[Gate, ...]:
        assert not (job.folder / "questions.jsonl").exists(), "no text of the build that was dropped stays"
        store.rows.pop(forgotten.correction_id, None)
        return gates_of(build, spec, answers, found)

    monkeypatch.setattr("services.dataset_builder.job.evaluate_gates", erase_and_evaluate)
    job, spec, artifacts = await submitted(handlers, tmp_path)
    result = await build_version(spec, store, store, artifacts, job.folder, Progress(job.folder))
    assert isinstance(result.outcome, DatasetBuilt)
    assert artifacts.names("datasets") == [result.outcome.dataset_id], "the first build is not published either"
    files = [path.read_text() for path in artifacts.fetch(result.outcome.uri).iterdir()]
    assert not any(forgotten.correction_id in text or "hash-of-eve" in text for text in files)
    assert "p1" not in store.decided


async def test_a_task_that_changed_meanwhile_fails_the_step(handlers: Handlers, published: Published) -> None:
    await handlers.on_clustered(clustered(revision="older"))
    (failed,) = published.events
    assert isinstance(failed, StepFailed)
    assert "revision" in failed.reason


async def test_a_cycle_without_an_id_is_invalid(handlers: Handlers) -> None:
    with pytest.raises(InvalidMessage):
        await handlers.on_clustered(clustered(cycle_id=None))


async def test_two_reviewers_who_disagree_make_one_question_however_often_delivered(
    handlers: Handlers, published: Published
) -> None:
    pair = delivered(correction(1, "refund"), correction(1, "delivery", reviewer="ben"))
    await handlers.on_corrections(pair)
    await handlers.on_corrections(pair)
    first, second = published.events
    assert isinstance(first, LabelRequested)
    assert first.purpose is Purpose.TIE_BREAK
    assert first.labels == SPEC.labels
    assert first.event_id == second.event_id


PAIR = {"purpose": Purpose.DISCORDANT_PAIR, "ticket_id": "t1"}


async def test_a_label_on_a_pair_that_was_taken_back_makes_no_row_and_asks_nobody(
    handlers: Handlers, run_cycle: RunCycle, published: Published
) -> None:
    later = {"label": None, "preference": "cannot_tell", "occurred_at": NOON + timedelta(hours=1)}
    ana = correction(4, "refund").model_copy(update=PAIR)
    ben = correction(4, "delivery", reviewer="ben").model_copy(update={**PAIR, "request_id": "r4.2"})
    await handlers.on_corrections(delivered(ana, ben.model_copy(update={**later, "correction_id": "c4-ben-2"}), ben))
    assert published.events == [], "ana's label stands alone"
    rows = [correction(i, SPEC.labels[i % 2]) for i in range(30) if i != 4]
    await handlers.on_corrections(delivered(*rows, ana.model_copy(update={**later, "correction_id": "c4-ana-2"})))
    await run_cycle()
    (built,) = published.events
    assert isinstance(built, DatasetBuilt)
    assert built.train_examples + built.eval_examples == 29


async def test_an_erased_person_is_in_no_later_dataset(
    handlers: Handlers, run_cycle: RunCycle, published: Published
) -> None:
    rows = [correction(i, SPEC.labels[i % 2], user_hash="u1" if i == 4 else "u2") for i in range(30)]
    await handlers.on_corrections(delivered(*rows))
    forgotten = SubjectForgotten(task=SPEC.name, task_revision=SPEC.revision, subject_hash="u1")
    await handlers.broker.publish(forgotten.model_dump_json().encode(), "subjects.forgotten.v1")  # type: ignore[attr-defined]
    await run_cycle()
    (built,) = published.events
    assert isinstance(built, DatasetBuilt)
    lines = [
        json.loads(s) for f in ("train", "eval") for s in (Path(built.uri) / f"{f}.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 29
    assert "p4" not in {line["prediction_ids"][0] for line in lines}


async def test_a_broken_record_is_skipped_so_that_no_fence_waits_for_it(handlers: Handlers, store: MemoryStore) -> None:
    await handlers.broker.publish(b"{not json", TOPIC)  # type: ignore[attr-defined]
    assert [position.topic for position in store.skipped] == [TOPIC]


async def test_an_example_names_its_person_and_time(
    handlers: Handlers, run_cycle: RunCycle, published: Published
) -> None:
    early = NOON - timedelta(days=1)
    theirs = correction(201, "refund", user_hash="u1").model_copy(update={"predicted_at": early})
    unknown = correction(202, "no such label", user_hash="u2").model_copy(update={"predicted_at": early})
    await filled(handlers)
    await handlers.on_corrections(delivered(theirs.model_copy(update={"correction_id": "mine", "prediction_id": "x"})))
    await handlers.on_corrections(delivered(unknown.model_copy(update={"correction_id": "bad", "prediction_id": "y"})))
    await run_cycle()
    (built,) = published.events
    assert isinstance(built, DatasetBuilt)
    lines = [
        json.loads(line)
        for name in ("train.jsonl", "eval.jsonl", "rejected.jsonl")
        for line in (Path(built.uri) / name).read_text().splitlines()
    ]
    whose = {line["prediction_ids"][0]: (line["user_hash"], line["predicted_at"]) for line in lines}
    at = early.isoformat().replace("+00:00", "Z")
    assert (whose["x"], whose["y"], whose["p5"]) == (("u1", at), ("u2", at), (None, None))


async def test_a_person_erased_during_a_build_is_not_in_it(
    handlers: Handlers, run_cycle: RunCycle, store: MemoryStore, published: Published
) -> None:
    await filled(handlers)
    await handlers.on_corrections(delivered(correction(77, "refund", user_hash="u1")))
    read = store.corrections_below

    async def read_and_forget(
        task: str, fence: Sequence[PartitionFence], rules: str
    ) -> AsyncIterator[SearchedCorrections]:
        async for part in read(task, fence, rules):
            await store.forget(SubjectForgotten(task=task, task_revision=SPEC.revision, subject_hash="u1"))
            yield part

    store.corrections_below = read_and_forget  # type: ignore[method-assign]
    await run_cycle()
    (built,) = published.events
    assert isinstance(built, DatasetBuilt)
    assert built.train_examples + built.eval_examples == 30
    files = ("train.jsonl", "eval.jsonl", "rejected.jsonl")
    assert "p77" not in "".join((Path(built.uri) / name).read_text() for name in files)


async def test_forms_of_applications_are_searched_once_the_task_has_no_form_of_its_own_any_more(
    handlers: Handlers, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then they are in no row, and nobody has looked at them."""
    asked: list[int] = []
    find = Redactor.find

    def noted_find(redactor: Redactor, texts: Sequence[str], rules: Rules) -> list[list[TextSpan]]:
        asked.append(len(texts))
        return find(redactor, texts, rules)

    monkeypatch.setattr(Redactor, "find", noted_find)
    await filled(handlers)
    job, given, artifacts = await submitted(handlers, tmp_path)
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    own = TaskSpec(name=SPEC.name, kind=TaskKind.EXTRACTION, system_prompt="Intent?", output_schema=schema)
    none = TaskSpec(name=SPEC.name, kind=TaskKind.GENERATION, system_prompt="Intent?")
    searched = []
    for number, spec in enumerate((own, own, none, none)):
        asked.clear()
        cycle = given.cycle.model_copy(update={"cycle_id": f"cycle-{number}"})
        build = given.model_copy(update={"spec": spec, "cycle": cycle})
        await build_version(build, store, store, artifacts, job.folder, Progress(job.folder))
        searched.append(max(asked))
    once, again = searched[::2], searched[1::2]  # What had a finding is looked at in each build.
    assert min(once) >= 30 > 5 > max(again)


async def test_a_redelivered_cycle_is_one_job_without_anyones_texts(
    handlers: Handlers, published: Published, tmp_path: Path
) -> None:
    source = ExemplarSource(prediction_id="p1", user_hash="u1", predicted_at=NOON)
    mode = FailureMode(
        mode_id="m1", name="parcels", words=("parcel",), exemplars=("my parcel is lost",), sources=(source,),
        size=9, share=1.0,
    )  # fmt: skip
    event = clustered().model_copy(update={"modes": (mode,)})
    await handlers.on_clustered(event)
    await handlers.on_clustered(event)
    (path,) = (tmp_path / "jobs" / "dataset_builder").glob("*/spec.json")
    assert BuildJob.model_validate_json(path.read_bytes()).cycle.modes[0].mode_id == "m1"
    assert b"my parcel is lost" not in path.read_bytes()
    assert published.events == []


async def test_a_job_that_was_killed_after_storing_its_outcome_returns_it_with_its_questions(
    handlers: Handlers, store: MemoryStore, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = LabelRequested(
        task=SPEC.name, task_revision=SPEC.revision, request_id="again-p1", prediction_id="p1",
        purpose=Purpose.SUSPICIOUS_LABEL, call=correction(1, "refund").call, answers=(Answer(text="refund"),),
    )  # fmt: skip

    def build_and_ask(inputs: Inputs, *others: object) -> Build:
        return replace(build_dataset(inputs), questions=(asked,))

    monkeypatch.setattr("services.dataset_builder.job.build_dataset", build_and_ask)
    await filled(handlers)
    job, spec, artifacts = await submitted(handlers, tmp_path)
    results = []
    for _ in range(2):
        results.append(await build_version(spec, store, store, artifacts, job.folder, Progress(job.folder)))
        await filled(handlers, 60)  # What comes later is no matter: the outcome is stored.
    assert results[0] == results[1]
    (job.folder / ".publishing-x" / "train.jsonl").parent.mkdir()
    for _ in range(2):  # As after a crash between publishing and noting it.
        await handlers.on_done(job, results[0].model_dump_json().encode())
    assert published.events == [asked, results[0].outcome, results[0].outcome]
    assert not list(read_questions(job)), "the texts of published questions do not stay in the job's folder"
    assert not list(job.folder.glob(".publishing-*")), "nor do rows that a killed process was about to publish"


async def test_a_job_that_was_killed_while_it_published_leaves_no_rows(
    handlers: Handlers, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(self: ArtifactStore, folder: Path, kind: str, name: str) -> str:
        assert (folder / "train.jsonl").stat().st_size > 0
        assert folder.is_relative_to(job.folder)
        shutil.copytree(folder, job.folder / ".publishing-killed")  # What is left where nothing can clean up.
        raise Killed

    await filled(handlers)
    job, spec, artifacts = await submitted(handlers, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ArtifactStore, "publish", killed)
        await build_version(spec, store, store, artifacts, job.folder, Progress(job.folder))
    assert list(job.folder.glob(".publishing-*"))
    await build_version(spec, store, store, artifacts, job.folder, Progress(job.folder))
    assert not list(job.folder.glob(".publishing-*"))


async def test_a_job_that_cannot_finish_ends_the_step_once_and_for_all(
    handlers: Handlers, store: MemoryStore, published: Published, tmp_path: Path
) -> None:
    await handlers.on_clustered(clustered())
    job = job_of(tmp_path, clustered())
    questions = job.folder / "questions.jsonl"
    questions.write_bytes(b"of people")
    await handlers.on_failed(job, JobFailure(reason="its process died", way_out="Read its log."))
    assert not questions.exists(), "the texts of its questions do not stay"
    await handlers.on_clustered(clustered())
    first, second = published.events
    assert isinstance(first, StepFailed)
    assert (first.step, first.cycle_id, first.reason) == ("dataset", "cycle-1", "its process died")
    assert first == second == store.outcomes["cycle-1"]


async def test_a_build_that_ended_before_its_process_failed_has_ended_as_it_did(
    handlers: Handlers, store: MemoryStore, published: Published, tmp_path: Path
) -> None:
    """The database went away with its answer to the commit, say: the version is published, and its places decided."""
    await filled(handlers)
    job, spec, artifacts = await submitted(handlers, tmp_path)
    await build_version(spec, store, store, artifacts, job.folder, Progress(job.folder))
    await handlers.on_failed(job, JobFailure(reason="the database is away"))
    await handlers.on_clustered(clustered())
    first, second = published.events
    assert isinstance(first, DatasetBuilt)
    assert first == second == store.outcomes["cycle-1"]
    assert not (job.folder / "questions.jsonl").exists()


async def test_of_production_only_labels_are_counted(handlers: Handlers, store: MemoryStore) -> None:
    """What a free text says is people's, and would outlive the task's retention."""
    written = TaskSpec(name="reply", kind=TaskKind.GENERATION, system_prompt="Write.")
    task = TaskChanged(task="reply", task_revision=written.revision, spec=written)
    await handlers.broker.publish(task.model_dump_json().encode(), "tasks.changed.v1")  # type: ignore[attr-defined]
    await handlers._tasks.read_to({})
    hour = PredictionsRolledUp.model_validate_json(ROLLED_UP)
    for name in (SPEC.name, "reply"):
        await handlers.on_rolled_up(hour.model_copy(update={"task": name}))
    assert [kept.task for kept in store.hours] == [SPEC.name]


async def test_the_progress_of_a_build_names_its_cycle(
    handlers: Handlers, published: Published, tmp_path: Path
) -> None:
    await handlers.on_clustered(clustered())
    await handlers.on_progress(job_of(tmp_path, clustered()), JobProgress(done=1, total=4, message="building"))
    (event,) = published.events
    assert isinstance(event, StepProgressed)
    assert (event.step, event.cycle_id, event.done, event.total) == ("dataset", "cycle-1", 1, 4)


async def test_a_comma_in_the_prompt_orphans_no_correction(
    handlers: Handlers, run_cycle: RunCycle, published: Published, store: MemoryStore
) -> None:
    await filled(handlers)
    spec = SPEC.model_copy(update={"system_prompt": "Intent, please?"})
    change = TaskChanged(task=SPEC.name, task_revision=spec.revision, spec=spec)
    await handlers.broker.publish(change.model_dump_json().encode(), "tasks.changed.v1")  # type: ignore[attr-defined]
    assert set(store.known) == {SPEC.revision, spec.revision}
    await run_cycle(clustered(revision=spec.revision))
    (built,) = published.events
    assert isinstance(built, DatasetBuilt)
    lines = [
        line for name in ("train", "eval") for line in (Path(built.uri) / f"{name}.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 30
    assert {json.loads(line)["messages"][0]["content"] for line in lines} == {"Intent, please?"}


async def test_a_dispute_across_revisions_is_a_question_of_today(handlers: Handlers, published: Published) -> None:
    spec = SPEC.model_copy(update={"labels": ("refund", "delivery", "cancel")})
    change = TaskChanged(task=SPEC.name, task_revision=spec.revision, spec=spec)
    await handlers.broker.publish(change.model_dump_json().encode(), "tasks.changed.v1")  # type: ignore[attr-defined]
    newer = correction(1, "cancel", reviewer="ben").model_copy(update={"task_revision": spec.revision})
    await handlers.on_corrections(delivered(correction(1, "refund"), newer))
    (question,) = published.events
    assert isinstance(question, LabelRequested)
    assert (question.labels, question.task_revision) == (spec.labels, spec.revision)
