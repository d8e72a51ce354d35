"""A must-pass row that the candidate gets wrong is asked once more, and counts only if it is wrong again."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.adapters import AdapterTrained
from schemas.conversation import Message, Role
from schemas.datasets import Example
from schemas.golden import GoldenRow
from services.evaluator.domain import Question
from services.evaluator.job import ask_must_pass_again, evaluate_adapter
from services.evaluator.job_input import EvaluationJob
from services.evaluator.recipe import RETRY_ROUNDS, ArmAnswers
from shared.errors import DependencyUnavailable, StepImpossible
from shared.jobs import Progress
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import golden_set
from tests.unit.evaluator.arms import FREE
from tests.unit.evaluator.engine import FakeEngine

TRAINED = AdapterTrained.model_validate_json(Path("schemas/examples/adapters.trained.v1/lora.json").read_bytes())
RIGHT, WRONG = TRAINED.spec.labels[:2]


def candidate_of(**answers: str | Exception) -> FakeEngine:
    """Answers each question with the text it is given, in every request; an error is raised."""
    return FakeEngine(lambda request: answers[request.text])


def job(folder: Path) -> EvaluationJob:
    return EvaluationJob(
        trained=TRAINED, production=None, vllm=(), artifacts=str(folder / "artifacts"), cache=folder / "cache",
        slots_folder=folder / "slots", slots=1, concurrency=2, timeout_seconds=1.0, max_rank=16,
        embedder=folder, lake=str(folder),
    )  # fmt: skip


def golden(**must_pass: bool) -> list[Question]:
    return [
        Question((Message(role=Role.USER, content=text),), RIGHT, must_pass=marked)
        for text, marked in must_pass.items()
    ]


async def test_only_marked_rows_that_were_wrong_are_asked_again_and_those_wrong_again_remain(tmp_path: Path) -> None:
    questions = golden(right=True, unmarked=False, recovers=True, stays=True, refused=True)
    first = ArmAnswers(answers=("one", RIGHT, WRONG, WRONG, WRONG, None), latencies_ms=())  # One of the evaluation set.
    candidate = candidate_of(recovers=RIGHT, stays=WRONG, refused=DependencyUnavailable("too long"))
    repeated = await ask_must_pass_again(job(tmp_path), candidate, questions, first, start=1)
    assert [questions[position].text for position in repeated.wrong] == ["stays", "refused"]
    assert repeated.unanswered == []
    assert {request.text for request in candidate.requests} == {"recovers", "stays", "refused"}
    assert {request.model for request in candidate.requests} == {TRAINED.adapter}


async def test_a_golden_text_that_reaches_the_tasks_score_is_right_at_once_or_when_repeated(tmp_path: Path) -> None:
    spec = FREE.model_copy(update={"evaluation": FREE.evaluation.model_copy(update={"golden_score": 0.5})})
    questions = [
        Question((Message(role=Role.USER, content=text),), "within five days", must_pass=True)
        for text in ("near", "recovers", "stays")
    ]
    first = ArmAnswers(answers=("in five days", "no", "no"), latencies_ms=())
    candidate = candidate_of(recovers="in five days", stays="never")
    the_job = job(tmp_path).model_copy(update={"trained": TRAINED.model_copy(update={"spec": spec})})
    repeated = await ask_must_pass_again(the_job, candidate, questions, first, start=0)
    assert [questions[position].text for position in repeated.wrong] == ["stays"]
    assert {request.text for request in candidate.requests} == {"recovers", "stays"}


async def test_a_repeat_that_is_not_answered_is_asked_as_often_as_any_request_and_confirms_nothing(
    tmp_path: Path,
) -> None:
    questions, first = golden(slow=True, away=True), ArmAnswers(answers=(WRONG, WRONG), latencies_ms=())
    errors: dict[str, list[Exception]] = {"slow": [DependencyUnavailable("timed out")] * 3}
    candidate = FakeEngine(lambda request: WRONG if request.text == "slow" else DependencyUnavailable("away"), errors)
    repeated = await ask_must_pass_again(job(tmp_path), candidate, questions, first, start=0)
    assert [questions[position].text for position in repeated.wrong] == ["slow"]
    assert [questions[position].text for position in repeated.unanswered] == ["away"]
    assert [request.text for request in candidate.requests].count("away") == 2 * (1 + RETRY_ROUNDS)


async def test_one_wrong_answer_after_a_request_that_failed_confirms_nothing(tmp_path: Path) -> None:
    questions, first = golden(was_away=True, twice=True), ArmAnswers(answers=(None, WRONG), latencies_ms=())
    repeated = await ask_must_pass_again(
        job(tmp_path), candidate_of(was_away=WRONG, twice=WRONG), questions, first, start=0
    )
    assert [questions[position].text for position in repeated.wrong] == ["twice"]
    assert [questions[position].text for position in repeated.unanswered] == ["was_away"]


async def test_without_a_wrong_must_pass_row_nothing_is_asked_again(tmp_path: Path) -> None:
    candidate = candidate_of()
    first = ArmAnswers(answers=(RIGHT, WRONG), latencies_ms=())
    assert await ask_must_pass_again(job(tmp_path), candidate, golden(a=True, b=False), first, start=0) == ([], [])
    assert not candidate.requests


def test_a_golden_set_that_is_gone_fails_the_evaluation_with_the_way_out(tmp_path: Path) -> None:
    row = GoldenRow(
        row_id="g-1", messages=(Message(role=Role.USER, content="q"), Message(role=Role.ASSISTANT, content=RIGHT))
    )
    spec = TRAINED.spec.model_copy(update={"golden_set": golden_set(TRAINED.task, [row])})
    example = Example(example_id="e", messages=row.messages, group="g", prediction_ids=(), correction_ids=())
    data = tmp_path / "data"
    data.mkdir()
    (data / "eval.jsonl").write_text(example.model_dump_json() + "\n")
    (data / "manifest.json").write_text("{}")
    uri = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache").publish(data, "datasets", "d")
    trained = TRAINED.model_copy(update={"spec": spec, "dataset_uri": uri})
    written = job(tmp_path).model_copy(update={"trained": trained}).model_dump_json().encode()
    with pytest.raises(StepImpossible, match="is not in the artifact store") as caught:
        evaluate_adapter(written, tmp_path / "job", Progress(tmp_path / "job"))
    assert "scheduler" in caught.value.way_out
