"""Both arms get the same retries, and an evaluation keeps what its candidate got right of the golden set."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from schemas.conversation import Message, Role
from services.evaluator.domain import Question
from services.evaluator.golden_history import past_results, record_promotion
from services.evaluator.job import AskedArm, ask_arm, ask_arms, unfair, with_golden_history
from services.evaluator.job_input import EvaluationJob
from services.evaluator.recipe import RETRY_ROUNDS, ArmAnswers, ask, ask_failed_again
from services.evaluator.verdict import Asked
from shared.errors import DependencyUnavailable, InvalidMessage, StepImpossible
from shared.jobs import Progress
from shared.model.inference import Completion, InferenceClient
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import golden_set
from tests.unit.evaluator.arms import FREE
from tests.unit.evaluator.engine import FakeEngine, Request, first_letter
from tests.unit.evaluator.test_must_pass import RIGHT, TRAINED, WRONG, job

SPEC = TRAINED.spec
ASKED = [Question((Message(role=Role.USER, content=f"a{n}"),), "a") for n in range(100)]


async def arm(model: str, failures: int) -> tuple[ArmAnswers, FakeEngine]:
    """Ask an engine three of whose answers fail so many times, as a job asks both arms."""
    away = DependencyUnavailable("busy")
    engine = FakeEngine(first_letter, {f"a{n}": [away] * failures for n in (3, 50, 97)})
    answers = await ask(engine, model, ASKED, SPEC, 4, lambda done: None)
    assert len(answers.unanswered) == 3
    return await ask_failed_again(engine, model, answers, ASKED, SPEC, 4), engine


async def test_transient_failures_of_either_arm_are_asked_again() -> None:
    for model in ("candidate", "production"):
        answers, engine = await arm(model, failures=3)
        assert answers.unanswered == []
        assert {request.model for request in engine.requests} == {model}


async def test_what_failed_is_repeated_when_both_arms_were_asked(tmp_path: Path) -> None:
    """An engine that restarts is away for a minute: at once, a repeat fails as well, and one arm has all failures."""
    away, order = DependencyUnavailable("busy"), list[str]()

    def answered(request: Request) -> Completion:
        order.append(request.model)
        return first_letter(request)

    engine = FakeEngine(answered, {"a3": [away] * 2})
    arms = AskedArm("candidate", "one", engine), AskedArm("production", "two", engine)
    found = await ask_arms(job(tmp_path), arms, "", ASKED, tmp_path, Progress(tmp_path))
    assert [answers.unanswered for answers in found] == [[], []]
    assert order == ["one"] * 99 + ["two"] * 100 + ["one"]


async def test_what_fails_every_time_stays_a_failed_answer() -> None:
    answers, engine = await arm("candidate", failures=100)
    assert answers.unanswered == [3, 50, 97]
    assert len(engine.requests) == 97 + 3 * 2 * (1 + RETRY_ROUNDS)


async def test_a_refused_request_is_repeated_with_the_others_and_stays_refused() -> None:
    engine = FakeEngine(first_letter, {"a3": [InvalidMessage("too long")] * 10})
    answers = await ask(engine, "candidate", ASKED, SPEC, 4, lambda done: None)
    again = await ask_failed_again(engine, "candidate", answers, ASKED, SPEC, 4)
    assert again.unanswered == [3]


async def test_rows_that_the_engine_refuses_end_an_evaluation_with_that_reason_and_are_not_waited_for() -> None:
    """They are too long for it, for example: the engine would refuse them as often as they are asked."""
    errors: dict[str, list[Exception]] = {f"a{n}": [InvalidMessage("too long")] * 10 for n in (3, 50, 97)}
    engine = FakeEngine(first_letter, errors)
    answers = await ask(engine, "production", ASKED, SPEC, 4, lambda done: None)
    answers = await ask_failed_again(engine, "production", answers, ASKED, SPEC, 4)
    reason = unfair(answers, 100)
    assert isinstance(reason, StepImpossible)
    assert "refuses 3 of 100" in reason.reason and "--max-model-len" in reason.way_out
    with pytest.raises(StepImpossible, match="refuses 51 of 100 requests to production"):
        refusing = FakeEngine(first_letter, {f"a{n}": [InvalidMessage("too long")] for n in range(51)})
        await ask(refusing, "production", ASKED, SPEC, 4, lambda done: None)
    busy, _ = await arm("production", failures=100)
    assert isinstance(unfair(busy, 100), DependencyUnavailable)


async def test_a_model_that_an_engine_has_forgotten_is_waited_for_and_is_no_fault_of_the_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgot(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"message": "The model `refunds-1` does not exist."})

    client = InferenceClient(["http://vllm"])
    monkeypatch.setattr(client, "_client", httpx.AsyncClient(transport=httpx.MockTransport(forgot)))
    with pytest.raises(DependencyUnavailable, match="3 of 3 requests to refunds-1 failed"):
        await ask(client, "refunds-1", ASKED[:3], SPEC, 4, lambda done: None)
    await client.close()


def test_an_evaluation_reads_the_best_results_and_stores_its_own(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    golden = [Question((Message(role=Role.USER, content=f"g{n}"),), RIGHT, row_id=f"g-{n}") for n in range(3)]
    rows = [(question.row_id, question.answer) for question in golden]
    assert len(set(rows)) == 3
    spec = SPEC.model_copy(update={"golden_set": SPEC.golden_set or golden_set(TRAINED.task, [])})

    def evaluated(adapter: str, production: str | None, answers: tuple[str | None, ...]) -> Asked:
        trained = TRAINED.model_copy(update={"adapter": adapter, "spec": spec})
        the_job = EvaluationJob.model_validate(
            {**job(tmp_path).model_dump(), "trained": trained, "production": production}
        )
        arms = ArmAnswers(answers=answers, latencies_ms=())
        return with_golden_history(the_job, Asked([], golden, arms, arms), store)

    assert evaluated("one", None, (RIGHT, RIGHT, RIGHT)).past == []
    second = evaluated("two", "one", (RIGHT, WRONG, WRONG))
    assert [(result.adapter, sum(result.right.values())) for result in second.past] == [("one", 3)]
    record_promotion(store, TRAINED.task, "two")
    past = past_results(store, TRAINED.task, TRAINED.spec.base_model)
    assert {result.adapter: sum(result.right.values()) for result in past} == {"one": 3, "two": 1}
    record_promotion(store, TRAINED.task, "three")
    past = evaluated("three", "two", (RIGHT, None, WRONG)).past  # One request failed: that stays in no history.
    assert [sorted(result.right.values()) for result in past if result.adapter == "three"] == [[False, True]]


def test_a_golden_set_of_texts_without_a_score_leaves_no_result_that_would_stay(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    golden = [Question((Message(role=Role.USER, content="g"),), "within five days", row_id="g-1")]
    arms = ArmAnswers(answers=("in five days",), latencies_ms=())
    record_promotion(store, FREE.name, "one")
    for score, found in ((None, []), (0.5, [[True]])):
        evaluation = FREE.evaluation.model_copy(update={"golden_score": score})
        update = {"evaluation": evaluation, "golden_set": SPEC.golden_set}
        trained = TRAINED.model_copy(
            update={"adapter": "one", "task": FREE.name, "spec": FREE.model_copy(update=update)}
        )
        the_job = EvaluationJob.model_validate({**job(tmp_path).model_dump(), "trained": trained})
        past = with_golden_history(the_job, Asked([], golden, arms, arms), store).past
        assert [list(result.right.values()) for result in past] == found


async def test_a_killed_job_asks_no_arm_again_unless_it_asks_something_else(tmp_path: Path) -> None:
    """Long inputs are cut to the engine's context, which may be another one when the job goes on."""

    async def answers(questions: list[Question]) -> tuple[tuple[str | None, ...], int]:
        engine = FakeEngine(first_letter)
        found = await ask_arm(job(tmp_path), engine, "m", "candidate", 0, questions, tmp_path, Progress(tmp_path))
        return found.answers, len(engine.requests)

    first = [*ASKED[:2], Question((Message(role=Role.USER, content="b"),), "b")]
    assert await answers(first) == (("a", "a", "b"), 3)
    assert await answers(first) == (("a", "a", "b"), 0)
    assert await answers(first[1:]) == (("a", "b"), 2)
    assert await answers([*first, *first]) == (("a", "a", "b") * 2, 6)
