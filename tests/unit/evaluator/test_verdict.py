"""What an arm's score says: with intervals, of the rows and of all traffic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.evaluator.recipe import ArmAnswers
from services.evaluator.report.arms import arm_report
from services.evaluator.verdict import Asked, Extras, evaluation_report
from tests.unit.evaluator.arms import FREE, graded, questions, spec
from tests.unit.evaluator.reports import NOON, approaches, trained

ASKED = questions(40, ["a", "b"])
ANSWERS = [q.answer if i % 4 else "c" for i, q in enumerate(ASKED)]
TIMES = tuple(float(i) for i in range(1, 41))


def test_scores_per_label_are_precision_recall_and_f1_with_intervals() -> None:
    answers = ArmAnswers(answers=tuple(ANSWERS), latencies_ms=TIMES)
    report = arm_report("adapter", graded(ASKED, ANSWERS), ASKED, answers, spec())
    found = report.score
    by_label = {c.label: c for c in report.classes}
    assert (by_label["a"].precision, by_label["a"].recall, by_label["a"].support) == (1.0, 0.5, 20)
    assert (by_label["b"].precision, by_label["b"].recall) == (1.0, 1.0)
    assert found.macro_f1 == pytest.approx((2 / 3 + 1.0) / 2)
    assert [average.kind for average in found.averages] == ["macro", "weighted"]
    assert found.accuracy.value == pytest.approx(0.75)
    assert (found.latency_ms_p50, found.latency_ms_p95) == (20.5, pytest.approx(38.05))
    assert {(c.expected, c.given): c.count for c in report.confusions} == {
        ("a", "a"): 10,
        ("a", "c"): 10,
        ("b", "b"): 20,
    }
    assert (found.confidence, found.traffic_accuracy) == (None, None)


def test_the_accuracy_on_traffic_weighs_rows_by_how_probable_they_were() -> None:
    asked = [replace(q, drawn=0.1 if ANSWERS[i] == q.answer else 1.0, is_uniform=True) for i, q in enumerate(ASKED)]
    answers = ArmAnswers(answers=tuple(ANSWERS), latencies_ms=(), scores=(0.9,) * 40)
    report = arm_report("adapter", graded(asked, ANSWERS), asked, answers, spec())
    found = report.score
    assert found.traffic_accuracy is not None
    assert found.traffic_accuracy.value == pytest.approx(300 / 310)
    assert found.accuracy.value == pytest.approx(0.75)
    assert found.confidence is not None
    assert found.confidence.n == 40


def test_a_generation_task_has_exact_match_and_a_mean_score() -> None:
    asked = [replace(q, answer=text) for q, text in zip(ASKED, ["the refund is due", "yes"], strict=False)]
    given = ["The refund is due.", "yes of course"]
    report = arm_report(
        None, graded(asked, given, FREE), asked, ArmAnswers(answers=tuple(given), latencies_ms=()), FREE
    )
    found = report.score
    assert found.accuracy.value == 0.5
    assert found.score is not None
    assert found.macro_f1 == found.score.value == pytest.approx((1.0 + 0.5) / 2)
    assert report.classes == report.confusions == ()


def test_the_confidence_of_a_text_tells_no_errors_and_stops_nobody() -> None:
    """A text in other words than the right one is no error, whatever its confidence."""
    asked = questions(300, ["the parcel is late"])
    texts = tuple(q.answer if n % 5 == 0 else "it is late" for n, q in enumerate(asked))
    unsure, sure = (tuple(n / 300 for n in order) for order in (range(300, 0, -1), range(300)))
    arms = [ArmAnswers(answers=texts, latencies_ms=(1.0,), scores=scores) for scores in (unsure, sure)]
    none = approaches(300).model_copy(update={"findings": ()})
    report = evaluation_report(trained(FREE), None, "reply-2-vs-base", Asked(asked, [], *arms), Extras(none), NOON)
    assert "confidence" not in {gate.name for gate in report.gates}
    assert report.calibration is None and report.candidate.score.confidence is None
