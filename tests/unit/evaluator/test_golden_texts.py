"""Golden texts are judged by the score that the task sets; without one, the report says that nothing judges them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from schemas.base import CheckResult, Gate
from schemas.conversation import Message, Role
from schemas.evaluation_settings import TextMetric
from schemas.tasks import TaskSpec
from services.evaluator.comparison import Comparison
from services.evaluator.domain import PastResult, Question, Repeated, failed_must_pass, golden_grades, golden_key
from services.evaluator.golden_gates import golden_regression, judged_part, must_pass
from services.evaluator.golden_history import golden_result
from tests.unit.evaluator.arms import FREE, graded
from tests.unit.shared.grading.home import calls, light

RIGHT = "we refund the order within five days"
NEAR = "the order is refunded within five days"  # ROUGE-L: five of seven words, in order.
FAR = "please call us"
CALL = calls(light())


def task(**evaluation: object) -> TaskSpec:
    return FREE.model_copy(update={"evaluation": FREE.evaluation.model_copy(update=evaluation)})


JUDGED = task(golden_score=0.5)


def compared(
    spec: TaskSpec, candidate: Sequence[str | None], production: Sequence[str | None], right: str = RIGHT
) -> Comparison:
    """Both arms on must-pass rows that all have the same right answer."""
    asked = [
        Question((Message(role=Role.USER, content=f"order {n}"),), right, must_pass=True, row_id=f"g-{n}")
        for n in range(len(candidate))
    ]
    return Comparison(asked, *(golden_grades(asked, graded(asked, arm, spec), spec) for arm in (candidate, production)))


def regression(spec: TaskSpec, golden: Comparison, past: Sequence[PastResult] = ()) -> Gate:
    return golden_regression(spec, golden, past)


def test_without_a_score_that_the_task_sets_golden_texts_stop_nothing_and_the_gates_say_why() -> None:
    golden = compared(FREE, [NEAR] * 4, [NEAR, NEAR, RIGHT, FAR])
    wrong = failed_must_pass(golden.questions, golden.candidate)
    for gate in (regression(FREE, golden), must_pass(FREE, golden, Repeated(wrong))):
        assert gate.result is CheckResult.UNKNOWN
        assert "4 golden texts are not judged" in gate.detail and "Set evaluation.golden_score" in gate.detail
        assert "production's have rouge_l from 0.00 to 1.00, half of them under 0.71" in gate.detail
    assert (
        "Answered in other words: g-0, g-1, g-2, g-3 (ratchet golden list reply)"
        in must_pass(FREE, golden, Repeated(wrong)).detail
    )
    assert judged_part(FREE, golden).questions == []


def test_from_the_score_that_the_task_sets_on_a_golden_text_is_right() -> None:
    golden = compared(JUDGED, [NEAR, NEAR, FAR, FAR], [NEAR] * 4)
    assert golden.candidate.right == (True, True, False, False)
    gate = regression(JUDGED, golden)
    assert (gate.passed, gate.measured) == (False, 0.5)
    assert "Right on 2, the best so far (production) on 4 of 4 golden rows." in gate.detail
    assert "not judged" not in gate.detail
    assert compared(task(golden_score=0.8), [NEAR], [NEAR]).candidate.right == (False,)
    assert compared(task(golden_score=1.0), [RIGHT.upper()], [NEAR]).candidate.right == (True,), "the same words"


def test_a_must_pass_text_stops_a_candidate_that_stays_below_the_score() -> None:
    golden = compared(JUDGED, [NEAR, FAR], [NEAR, NEAR])
    wrong = failed_must_pass(golden.questions, golden.candidate)
    gate = must_pass(JUDGED, golden, Repeated(wrong))
    assert (gate.passed, gate.measured, wrong) == (False, 1, [1])
    assert gate.detail == "1 of 2 must-pass rows are wrong: g-1 (ratchet golden list reply)."


def test_calls_in_a_golden_row_are_right_or_wrong_whatever_the_score() -> None:
    other = calls(light("hall"))
    for spec in (FREE, task(golden_score=0.1)):
        golden = compared(spec, [CALL, other], [CALL, CALL], right=CALL)
        wrong = failed_must_pass(golden.questions, golden.candidate)
        assert (wrong, must_pass(spec, golden, Repeated(wrong)).passed) == ([1], False)
        assert regression(spec, golden).measured == 0.5


def test_of_texts_and_calls_the_calls_are_judged_and_the_texts_are_named() -> None:
    texts, made = compared(FREE, [NEAR], [NEAR]), compared(FREE, [CALL], [CALL], right=CALL)
    both = Comparison(
        [texts.questions[0], replace(made.questions[0], row_id="g-9")],
        *(
            replace(one, answers=one.answers + two.answers, grades=one.grades + two.grades)
            for one, two in ((texts.candidate, made.candidate), (texts.production, made.production))
        ),
    )
    gate = must_pass(FREE, both, Repeated(failed_must_pass(both.questions, both.candidate)))
    assert (gate.result, gate.measured) == (CheckResult.PASSED, 0)
    assert gate.detail.startswith("0 of 1 must-pass rows are wrong. Answered in other words: g-0")
    assert regression(FREE, both).detail.startswith("Right on 1, the best so far (production) on 1 of 1 golden rows.")


def test_a_task_that_scores_texts_by_exact_match_has_said_what_is_right() -> None:
    exact = task(text_metric=TextMetric.EXACT_MATCH)
    assert regression(exact, compared(exact, [NEAR], [RIGHT])).measured == 1.0


def test_what_was_right_from_another_score_on_is_no_measure() -> None:
    golden = compared(JUDGED, [FAR] * 2, [FAR] * 2)
    keys = [golden_key(question, JUDGED) for question in golden.questions]
    assert not regression(JUDGED, golden, [PastResult("old", dict.fromkeys(keys, True))]).passed
    for other in (task(golden_score=0.4), task(golden_score=0.5, text_metric=TextMetric.ROUGE_2)):
        before = {golden_key(question, other): True for question in golden.questions}
        assert regression(JUDGED, golden, [PastResult("old", before)]).passed


def test_only_rows_that_are_judged_are_kept_of_an_adapter() -> None:
    golden = compared(FREE, [RIGHT, NEAR], [NEAR] * 2)
    assert golden_result(FREE, "reply-1", golden.questions, golden.candidate.right).right == {}
    kept = golden_result(JUDGED, "reply-1", golden.questions, golden.candidate.right).right
    assert list(kept.values()) == [True, False]


def test_the_other_kinds_have_no_such_score() -> None:
    fields = {"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": ["a", "b"]}
    with pytest.raises(ValueError, match=r"`evaluation\.golden_score` is of generation tasks"):
        TaskSpec.model_validate({**fields, "evaluation": {"golden_score": 0.5}})
