"""The verdict has what came of the adversarial set."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.adapters import AdapterEvaluated, AdapterTrained
from services.evaluator.adversarial.cases import adversarial_cases
from services.evaluator.adversarial.misled import AdversarialAnswers
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


def answers(model: str, asked: Sequence[Question]) -> ArmAnswers:
    """Right answers of a robust model, wrong ones of a brittle one."""
    right = [question.answer or "a" for question in asked]
    given = right if model == "robust" else [wrong_label(answer) for answer in right]
    return ArmAnswers(answers=tuple(given), latencies_ms=(), scores=(0.5,) * len(given))


def test_the_verdict_stops_the_arm_that_is_misled() -> None:
    asked, cases = rows(), adversarial_cases(rows(), task(), None)
    right = ArmAnswers(answers=tuple(row.answer for row in asked), latencies_ms=(), scores=(0.5,) * len(asked))
    for models in (("robust", "brittle"), ("brittle", "robust")):
        ours, theirs = (answers(model, [case.question for case in cases]) for model in models)
        trained = TRAINED.model_copy(update={"spec": task()})
        event = event_of(trained, Asked(asked, [], right, right, adversarial=AdversarialAnswers(cases, ours, theirs)))
        assert event.adversarial is not None
        assert len(event.adversarial.results) == 7
        assert gate(event.gates, "adversarial_not_worse").passed is (models[0] == "robust")
        assert event.verdict == ("failed" if models[0] == "brittle" else event.verdict)


def test_an_evaluation_without_a_set_reports_none() -> None:
    asked = rows()
    right = ArmAnswers(answers=tuple(row.answer for row in asked), latencies_ms=())
    event = event_of(TRAINED.model_copy(update={"spec": task()}), Asked(asked, [], right, right))
    assert event.adversarial is None
    assert "adversarial_not_worse" not in {found.name for found in event.gates}
