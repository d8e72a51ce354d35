"""The evaluation asks both arms the adversarial set, and its verdict has what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.adapters import AdapterEvaluated, AdapterTrained
from services.evaluator.adversarial.step import ask_adversarial
from services.evaluator.domain import Question
from services.evaluator.recipe import ArmAnswers
from services.evaluator.verdict import Asked, Extras, evaluated_event, evaluation_report
from tests.unit.evaluator.adversarial.inputs import rows, task, wrong_label
from tests.unit.evaluator.arms import gate
from tests.unit.evaluator.reports import NOON, approaches
from tests.unit.evaluator.test_must_pass import TRAINED


def event_of(trained: AdapterTrained, asked: Asked) -> AdapterEvaluated:
    extras = Extras(approaches(len(asked.evaluation)))
    return evaluated_event(trained, evaluation_report(trained, None, "job", asked, extras, NOON), "evaluations/job")


class Engine:
    """Answers as the first word of a model's name says: rightly, or wrongly where a row was changed."""

    def __init__(self, context: int | None = None) -> None:
        self.context = context
        self.asked: list[tuple[str, str]] = []
        self.longest = 0

    async def context_tokens(self) -> int | None:
        return self.context

    async def repeat(self, model: str, answers: ArmAnswers, questions: Sequence[Question]) -> ArmAnswers:
        return answers

    async def ask(self, name: str, model: str, questions: Sequence[Question]) -> ArmAnswers:
        self.asked.append((name, model))
        self.longest = max(len(question.text) for question in questions)
        right = [question.answer or "a" for question in questions]
        answers = right if model == "robust" else [wrong_label(answer) for answer in right]
        return ArmAnswers(answers=tuple(answers), latencies_ms=(), scores=(0.5,) * len(answers))


async def test_both_arms_are_asked_the_same_set_and_the_verdict_stops_the_one_that_is_misled() -> None:
    asked, engine = rows(), Engine()
    right = ArmAnswers(answers=tuple(row.answer for row in asked), latencies_ms=(), scores=(0.5,) * len(asked))
    for candidate, production in (("robust", "brittle"), ("brittle", "robust")):
        found = await ask_adversarial(engine, candidate, production, asked, task(), engine.ask, engine.repeat)
        assert found is not None
        trained = TRAINED.model_copy(update={"spec": task()})
        event = event_of(trained, Asked(asked, [], right, right, adversarial=found))
        assert event.adversarial is not None
        assert len(event.adversarial.results) == 7
        assert gate(event.gates, "adversarial_not_worse").passed is (candidate == "robust")
        assert event.verdict == ("failed" if candidate == "brittle" else event.verdict)
    assert engine.asked[:2] == [("adversarial_candidate", "robust"), ("adversarial_production", "brittle")]


async def test_what_failed_is_repeated_when_both_arms_were_asked() -> None:
    """An engine that restarts is away for a minute: at once, a repeat fails as well, and one arm has all failures."""

    class Restarting(Engine):
        async def ask(self, name: str, model: str, questions: Sequence[Question]) -> ArmAnswers:
            found = await super().ask(name, model, questions)
            answers = (None, *found.answers[1:]) if model == "candidate" else found.answers
            return found.model_copy(update={"answers": answers})

        async def repeat(self, model: str, answers: ArmAnswers, questions: Sequence[Question]) -> ArmAnswers:
            is_back = ("adversarial_production", "production") in self.asked
            return (await Engine.ask(self, "repeated", model, questions)) if is_back else answers

    found = await ask_adversarial(
        (engine := Restarting()), "candidate", "production", rows(), task(), engine.ask, engine.repeat
    )
    assert found is not None
    assert found.candidate.unanswered == []


async def test_the_engines_context_bounds_a_long_input() -> None:
    engine = Engine(context=1_000)
    await ask_adversarial(engine, "robust", "robust", rows(), task(), engine.ask, engine.repeat)
    assert 2_000 < engine.longest <= 3 * (1_000 - 256)


async def test_a_task_without_a_set_and_rows_that_cannot_be_changed_ask_nothing() -> None:
    engine = Engine()
    assert await ask_adversarial(engine, "robust", "robust", rows(), task(rows=0), engine.ask, engine.repeat) is None
    assert (
        await ask_adversarial(engine, "robust", "robust", [], task(kinds=["typos"]), engine.ask, engine.repeat) is None
    )
    assert engine.asked == []


def test_an_evaluation_without_a_set_reports_none() -> None:
    asked = rows()
    right = ArmAnswers(answers=tuple(row.answer for row in asked), latencies_ms=())
    event = event_of(TRAINED.model_copy(update={"spec": task()}), Asked(asked, [], right, right))
    assert event.adversarial is None
    assert "adversarial_not_worse" not in {found.name for found in event.gates}
