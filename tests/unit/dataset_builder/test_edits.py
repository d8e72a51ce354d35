"""What people made of production's answers becomes pairs to train on: of rows to train on, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.conversation import Answer, Call, FinishReason, Message, Role, ToolCall
from schemas.datasets import PREFERENCES, DatasetBuilt, Example, PreferredAnswer
from schemas.golden import GoldenRow
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskSpec
from services.dataset_builder.building.preferences import MAX_PREFERENCES
from services.dataset_builder.building.votes import UserCorrection, votes_of
from services.dataset_builder.job import build_version
from services.dataset_builder.job_input import BuildJob
from services.dataset_builder.pipeline import Build, Inputs, build_dataset
from shared.jobs import Progress
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import golden_set, publish_golden_set
from tests.unit.dataset_builder.histories import sentence
from tests.unit.dataset_builder.test_handlers import MemoryStore, clustered

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SPEC = TaskSpec.model_validate({
    "name": "desk", "kind": "generation", "system_prompt": "Reply.", "dataset": {"min_examples": 5},
    "redaction": {"names": False},
})  # fmt: skip
ANSWERED = "Please wait for our answer."
GOLDEN = sentence(1, 12)


def asked(text: str, **call: Any) -> Call:
    return Call(messages=(Message(role=Role.SYSTEM, content="Reply."), Message(role=Role.USER, content=text)), **call)


def correction(number: int, label: str | None = "", text: str = "", **changes: Any) -> CorrectionSubmitted:
    fields = {
        "occurred_at": NOON + timedelta(seconds=number), "task": "desk", "task_revision": SPEC.revision,
        "correction_id": f"c{number}", "request_id": f"r{number}", "prediction_id": f"p{number}", "reviewer": "ana",
        "purpose": Purpose.LOW_CONFIDENCE, "answers": (Answer(text=ANSWERED),), "predicted_at": NOON,
        "user_hash": f"u{number}", "call": asked(text or sentence(number + 10, 12)),
        "label": f"You get your money back on day {number}." if label == "" else label,
    }  # fmt: skip
    return CorrectionSubmitted.model_validate({**fields, **changes})


def built(corrections: Iterable[CorrectionSubmitted], users: Iterable[UserCorrection] = ()) -> Build:
    return build_dataset(Inputs(votes_of(corrections, users), SPEC))


def pairs_of(build: Build) -> dict[str, PreferredAnswer]:
    return {pair.prediction_ids[0]: pair for pair in build.edits}


def test_an_edit_of_a_row_to_train_on_is_preferred_to_what_production_had_answered() -> None:
    build = built(map(correction, range(40)))
    pairs = pairs_of(build)
    assert pairs.keys() == {example.prediction_ids[0] for example in build.dataset.train}
    assert not pairs.keys() & {example.prediction_ids[0] for example in build.dataset.eval}
    example = build.dataset.train[0]
    pair = pairs[example.prediction_ids[0]]
    assert (pair.source, pair.preferred, pair.held_out) == ("edited", "a", False)
    assert [answer.text for answer in pair.answers] == [example.answer, ANSWERED]
    assert (pair.prompt, pair.user_hash, pair.correction_ids) == (
        example.prompt, example.user_hash, example.correction_ids,
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"label": ANSWERED},
        {"label": f" {ANSWERED.upper()}\n"},
        {"answers": (Answer(text=ANSWERED, finish_reason=FinishReason.LENGTH),)},
        {"answers": (Answer(text=ANSWERED), Answer(text="You get your money back on day 4.")), "ticket_id": "t",
         "purpose": Purpose.DISCORDANT_PAIR},
    ],
    ids=["accepted", "accepted in other letters", "cut", "one of a pair"],
)  # fmt: skip
def test_what_is_no_edit_of_a_whole_answer_makes_no_pair(changes: dict[str, Any]) -> None:
    build = built([*map(correction, range(4)), correction(4, **changes), *map(correction, range(5, 12))])
    assert "p4" in {example.prediction_ids[0] for example in build.dataset.train}
    assert "p4" not in pairs_of(build)
    assert len(build.edits) == len(build.dataset.train) - 1


def test_an_edit_of_a_task_with_labels_makes_no_pair() -> None:
    spec = TaskSpec.model_validate(
        {"name": "desk", "kind": "classification", "system_prompt": "x", "labels": ["a", "b"]}
    )
    found = [
        correction(number, spec.labels[number % 2], answers=(Answer(text="b"),), task_revision=spec.revision)
        for number in range(12)
    ]
    build = build_dataset(Inputs(votes_of(found), spec))
    assert build.dataset.train and not build.edits


def test_a_pair_has_the_tools_and_calls_of_its_conversation_and_names_its_author() -> None:
    tool = {"type": "function", "function": {"name": "find"}}
    calling = Answer(text="", tool_calls=(ToolCall(name="find", arguments='{"n": 2}'),))
    users = [
        UserCorrection(
            correction_id=f"feedback-{n}", task="desk", task_revision=SPEC.revision, prediction_id=f"p{n}",
            occurred_at=NOON + timedelta(seconds=n), call=asked(sentence(n, 9), tools=(tool,)), label=calling.plain,
            answers=(Answer(text=ANSWERED),), author_hash="writer", user_hash="reader", predicted_at=NOON,
        )
        for n in range(100, 103)
    ]  # fmt: skip
    pairs = pairs_of(built(map(correction, range(20)), users))
    pair = pairs["p101"]
    assert (pair.tools, pair.user_hash, pair.author_hashes) == ((tool,), "reader", ("writer",))
    assert [(call.name, call.arguments) for call in pair.answers[0].tool_calls] == [("find", '{"n": 2}')]
    assert pair.answers[0].text == ""


def test_the_newest_edits_are_published(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PREFERENCES == 1_000
    monkeypatch.setattr("services.dataset_builder.building.preferences.MAX_PREFERENCES", 3)
    build = built(map(correction, range(20)))
    trained = sorted(int(example.prediction_ids[0][1:]) for example in build.dataset.train)
    assert [pair.prediction_ids for pair in build.edits] == [(f"p{number}",) for number in trained[-3:]]


async def published(folder: Path, corrections: Iterable[CorrectionSubmitted]) -> tuple[Path, list[PreferredAnswer]]:
    """Build a version of a task whose golden set has one question."""
    golden = GoldenRow(
        row_id="g1",
        messages=(Message(role=Role.USER, content=GOLDEN), Message(role=Role.ASSISTANT, content="You get it back.")),
    )
    spec = SPEC.model_copy(update={"golden_set": golden_set("desk", [golden])})
    cycle = clustered().model_copy(update={"task": "desk", "task_revision": spec.revision})
    job = BuildJob(
        cycle=cycle, spec=spec, artifacts=str(folder / "artifacts"), cache=folder / "cache", models_folder=folder,
        slots_folder=folder / "slots", embedder=folder / "embedder", secrets_folder=folder / "secrets",
        traffic_hours=24,
    )  # fmt: skip
    store, artifacts = MemoryStore(), ArtifactStore(job.artifacts, job.cache)
    publish_golden_set(artifacts, "desk", [golden])
    (folder / "job").mkdir()
    store.rows = {event.correction_id: event for event in corrections}
    outcome = (await build_version(job, store, store, artifacts, folder / "job", Progress(folder / "job"))).outcome
    assert isinstance(outcome, DatasetBuilt), outcome
    version = Path(outcome.uri)
    return version, [PreferredAnswer.model_validate_json(line) for line in (version / PREFERENCES).open()]


async def test_no_pair_to_train_on_is_a_held_out_or_a_golden_question_or_nearly(tmp_path: Path) -> None:
    corrections = [*map(correction, range(60)), correction(90, text=f"{GOLDEN}!")]
    version, edited = await published(tmp_path, corrections)
    assert {pair.source for pair in edited} == {"edited"}
    assert "p90" not in {pair.prediction_ids[0] for pair in edited}
    eval_rows = [Example.model_validate_json(line) for line in (version / "eval.jsonl").open()]
    held_out = eval_rows[0].prompt[-1].text

    def judged(number: int, text: str) -> CorrectionSubmitted:
        return correction(
            number, None, text, preference="b", ticket_id=f"t{number}", purpose=Purpose.DISCORDANT_PAIR,
            answers=(Answer(text="one"), Answer(text="two")),
        )  # fmt: skip

    compared = [judged(70, f"{held_out}!"), judged(71, GOLDEN.upper()), judged(72, sentence(500, 12))]
    (tmp_path / "again").mkdir()
    _, pairs = await published(tmp_path / "again", [*corrections, *compared])
    marked = {pair.prediction_ids[0]: pair.held_out for pair in pairs if pair.source == "judged"}
    assert marked == {"p70": True, "p71": True, "p72": False}
    assert not any(pair.held_out for pair in pairs if pair.source == "edited")
