"""The handlers on an in-memory broker: a cycle gives a folder and an event, or a failure with its reason."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from faststream.kafka import TestKafkaBroker

from schemas.base import Event
from schemas.conversation import Answer, Call, Message, Role, ToolCall
from schemas.cycles import PartitionFence, StepFailed
from schemas.datasets import DatasetBuilt, DatasetManifest, Example
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import PredictionsRolledUp, SubjectForgotten
from schemas.tasks import DatasetSettings, TaskChanged, TaskKind, TaskSpec
from services.dataset_builder.handlers import Handlers
from services.dataset_builder.settings import DatasetBuilderSettings
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.delivery import Delivery, RecordPosition
from shared.storage.artifacts import ArtifactStore

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
TOPIC = "corrections.submitted.v1"
FENCE = (PartitionFence(topic=TOPIC, partition=0, offset=1_000),)
SPEC = TaskSpec(
    name="support-desk",
    kind=TaskKind.CLASSIFICATION,
    system_prompt="Intent?",
    labels=("refund", "delivery"),
    dataset=DatasetSettings(min_examples=5),
)


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
        self.not_read: list[PartitionFence] = []
        self.skipped: list[RecordPosition] = []
        self.hours: list[PredictionsRolledUp] = []

    async def save(self, deliveries: Sequence[Delivery[CorrectionSubmitted]]) -> None:
        for delivery in deliveries:
            self.rows.setdefault(delivery.event.correction_id, delivery.event)

    async def corrections_of(self, prediction_ids: Iterable[str]) -> list[CorrectionSubmitted]:
        wanted = set(prediction_ids)
        return [row for row in self.rows.values() if row.prediction_id in wanted]

    async def skip(self, position: RecordPosition) -> None:
        self.skipped.append(position)

    async def forget(self, event: SubjectForgotten) -> None:
        self.rows = {k: row for k, row in self.rows.items() if row.user_hash != event.subject_hash}

    async def save_hour(self, event: PredictionsRolledUp) -> None:
        self.hours.append(event)

    async def answer_counts(self, task: str, revision: str, hours: int) -> dict[str, int]:
        return {"refund": 10, "delivery": 10}

    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]:
        return self.not_read

    async def corrections_below(
        self, task: str, revision: str, fence: Sequence[PartitionFence]
    ) -> list[CorrectionSubmitted]:
        return list(self.rows.values())

    async def count_below(self, task: str, revision: str, fence: Sequence[PartitionFence]) -> int:
        return len(self.rows)

    async def outcome(self, cycle_id: str) -> Event | None:
        return self.outcomes.get(cycle_id)

    async def save_outcome(self, event: Event) -> None:
        self.outcomes[str(event.cycle_id)] = event


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
    settings = DatasetBuilderSettings(home=tmp_path, retry_base_seconds=0.001)
    artifacts = ArtifactStore(settings.artifacts_uri, cache=tmp_path / "cache")
    made = Handlers(settings, store, store, artifacts, published, now=lambda: NOON)
    broker = build_broker(settings, "dataset_builder")
    made.subscribe(Consumers(broker, "dataset_builder", settings))
    async with TestKafkaBroker(broker) as test:
        task = TaskChanged(task=SPEC.name, task_revision=SPEC.revision, spec=SPEC)
        await test.publish(task.model_dump_json().encode(), "tasks.changed.v1")
        made.broker = test  # type: ignore[attr-defined]
        yield made


async def filled(handlers: Handlers, count: int = 30) -> None:
    await handlers.on_corrections(delivered(*(correction(i, SPEC.labels[i % 2]) for i in range(count))))


async def test_a_cycle_makes_a_dataset_that_reads_back(
    handlers: Handlers, published: Published, tmp_path: Path
) -> None:
    await filled(handlers)
    await handlers.on_clustered(clustered())
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
    handlers: Handlers, published: Published
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
    await handlers.on_clustered(clustered())
    (built,) = published.events
    assert isinstance(built, DatasetBuilt)
    files = {name: (Path(built.uri) / f"{name}.jsonl").read_text() for name in ("train", "eval", "rejected")}
    examples = [Example.model_validate_json(s) for s in (files["train"] + files["eval"]).splitlines()]
    (example,) = [e for e in examples if e.prediction_ids == ("p91",)]
    assert (example.prompt, example.tools, example.answer) == (talk.messages, talk.tools, "delivery")
    assert [(json.loads(s)["reason"], json.loads(s)["prediction_ids"]) for s in files["rejected"].splitlines()] == [
        ("truncated", ["p92"])
    ]


async def test_a_redelivered_cycle_publishes_the_same_event(handlers: Handlers, published: Published) -> None:
    await filled(handlers)
    await handlers.on_clustered(clustered())
    await filled(handlers, 60)
    await handlers.on_clustered(clustered())
    assert published.events[0] == published.events[1]


async def test_the_same_rows_have_the_same_name_in_another_cycle(handlers: Handlers, published: Published) -> None:
    await filled(handlers)
    await handlers.on_clustered(clustered("cycle-1"))
    await handlers.on_clustered(clustered("cycle-2"))
    first, second = published.events
    assert isinstance(first, DatasetBuilt)
    assert isinstance(second, DatasetBuilt)
    assert first.dataset_id == second.dataset_id
    assert first.event_id != second.event_id


async def test_too_few_examples_fail_the_step_with_numbers_and_a_way_out(
    handlers: Handlers, published: Published
) -> None:
    await filled(handlers, 3)
    await handlers.on_clustered(clustered())
    (failed,) = published.events
    assert isinstance(failed, StepFailed)
    assert failed.step == "dataset"
    assert "required >= 5 training examples" in failed.reason
    assert "min_examples" in failed.way_out


async def test_no_corrections_at_all_fail_the_step(handlers: Handlers, published: Published) -> None:
    await handlers.on_clustered(clustered())
    assert isinstance(published.events[0], StepFailed)


async def test_a_build_waits_for_corrections_below_the_fence(handlers: Handlers, store: MemoryStore) -> None:
    store.not_read = [FENCE[0]]
    with pytest.raises(DependencyUnavailable):
        await handlers.on_clustered(clustered())


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


async def test_an_erased_person_is_in_no_later_dataset(handlers: Handlers, published: Published) -> None:
    rows = [correction(i, SPEC.labels[i % 2], user_hash="u1" if i == 4 else "u2") for i in range(30)]
    await handlers.on_corrections(delivered(*rows))
    forgotten = SubjectForgotten(task=SPEC.name, task_revision=SPEC.revision, subject_hash="u1")
    await handlers.broker.publish(forgotten.model_dump_json().encode(), "subjects.forgotten.v1")  # type: ignore[attr-defined]
    await handlers.on_clustered(clustered())
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


async def test_an_example_names_its_person_and_time(handlers: Handlers, published: Published) -> None:
    early = NOON - timedelta(days=1)
    theirs = correction(1, "refund", user_hash="u1").model_copy(update={"predicted_at": early})
    unknown = correction(2, "no such label", user_hash="u2").model_copy(update={"predicted_at": early})
    await filled(handlers)
    await handlers.on_corrections(delivered(theirs.model_copy(update={"correction_id": "mine", "prediction_id": "x"})))
    await handlers.on_corrections(delivered(unknown.model_copy(update={"correction_id": "bad", "prediction_id": "y"})))
    await handlers.on_clustered(clustered())
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
    handlers: Handlers, store: MemoryStore, published: Published
) -> None:
    await filled(handlers)
    await handlers.on_corrections(delivered(correction(77, "refund", user_hash="u1")))
    read = store.corrections_below

    async def read_and_forget(task: str, revision: str, fence: Sequence[PartitionFence]) -> list[CorrectionSubmitted]:
        found = await read(task, revision, fence)
        await store.forget(SubjectForgotten(task=task, task_revision=revision, subject_hash="u1"))
        return found

    store.corrections_below = read_and_forget  # type: ignore[method-assign]
    await handlers.on_clustered(clustered())
    (built,) = published.events
    assert isinstance(built, DatasetBuilt)
    assert built.train_examples + built.eval_examples == 30
    files = ("train.jsonl", "eval.jsonl", "rejected.jsonl")
    assert "p77" not in "".join((Path(built.uri) / name).read_text() for name in files)
