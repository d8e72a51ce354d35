"""An extraction is compared by its values: what is worse in all of them, or in one, is stopped."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from schemas.base import Gate
from schemas.conversation import Message, Role
from schemas.tasks import TaskSpec
from services.evaluator.comparison import Comparison
from services.evaluator.domain import GradedAnswers, Question
from services.evaluator.gates import check_gates, verdict
from services.evaluator.recipe import ArmAnswers
from services.evaluator.report.arms import arm_report
from shared.answers import answer_form

FIELDS = ("action", "product", "city", "total")
SPEC = TaskSpec.model_validate({
    "name": "orders", "kind": "extraction", "system_prompt": "Extract.",
    "output_schema": {"type": "object", "properties": {name: {"type": ["string", "null"]} for name in FIELDS}},
})  # fmt: skip
FREE = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})
NONE = Comparison((), GradedAnswers((), ()), GradedAnswers((), ()))
Spoil = Callable[[dict[str, Any], random.Random], str]


def questions(n: int = 80) -> list[Question]:
    rows = [{name: f"{name} {i % 7}" for name in FIELDS} for i in range(n)]
    return [Question((Message(role=Role.USER, content=f"message {i}"),), json.dumps(row)) for i, row in enumerate(rows)]


def arm(asked: list[Question], spoil: Spoil, seed: int = 0) -> GradedAnswers:
    rng = random.Random(seed)
    answers = tuple(spoil(json.loads(question.answer), rng) for question in asked)
    return GradedAnswers(
        answers, tuple(answer_form(SPEC).grade(q.answer, a) for a, q in zip(answers, asked, strict=True))
    )


def good(row: dict[str, Any], rng: random.Random) -> str:
    """One value in twelve is wrong."""
    return json.dumps({name: value if rng.random() > 1 / 12 else "other" for name, value in row.items()})


def gates(spoil: Spoil, production: Spoil = good) -> tuple[Gate, ...]:
    asked = questions()
    return check_gates(SPEC, Comparison(asked, arm(asked, spoil), arm(asked, production, seed=1)), NONE)


def half_right(row: dict[str, Any], rng: random.Random) -> str:
    return json.dumps({name: value if rng.random() > 0.5 else "other" for name, value in row.items()})


@pytest.mark.parametrize(
    "spoil",
    [lambda row, rng: "zx qv", lambda row, rng: json.dumps(row)[:-1], lambda row, rng: "{}", half_right],
    ids=["garbage", "invalid JSON", "empty", "half of the values wrong"],
)
def test_a_candidate_whose_values_are_worse_is_stopped_though_neither_arm_gets_whole_objects_right(
    spoil: Spoil,
) -> None:
    assert next(gate.name for gate in gates(spoil) if not gate.passed) == "not_worse"


def sure_of_the_city_alone(row: dict[str, Any], rng: random.Random) -> str:
    wrong = {name: "other" for name in row if name != "city" and rng.random() < 0.4}
    return json.dumps({**row, **wrong})


def test_a_field_that_is_always_empty_stops_a_candidate_that_is_better_in_all_others() -> None:
    found = gates(lambda row, rng: json.dumps({**row, "city": None}), sure_of_the_city_alone)
    (stopped,) = [gate for gate in found if not gate.passed]
    assert stopped.name == "parts_not_worse"
    assert "Worse: field city: 100% → 0% of 80 rows" in stopped.detail


def test_candidates_as_good_as_production_pass() -> None:
    asked = questions()
    production = arm(asked, good, seed=1)
    stopped = sum(
        verdict(check_gates(SPEC, Comparison(asked, arm(asked, good, seed), production), NONE)) == "failed"
        for seed in range(2, 42)
    )
    assert stopped <= 5


def test_garbage_text_is_stopped_though_neither_arm_matches_exactly() -> None:
    """Production's words are nearly right, the candidate's share none with them: exact match is 0 in both."""
    asked = [
        Question((Message(role=Role.USER, content=f"question {i}"),), f"the answer to the question {i} is here")
        for i in range(60)
    ]
    texts = [("zx qv zx",) * 60, tuple(q.answer.replace("is here", "is there") for q in asked)]
    ours, theirs = (
        GradedAnswers(part, tuple(answer_form(FREE).grade(q.answer, a) for a, q in zip(part, asked, strict=True)))
        for part in texts
    )
    assert not any((*ours.right, *theirs.right))
    found = check_gates(FREE, Comparison(asked, ours, theirs), NONE)
    assert verdict(found) == "failed"
    assert "not_worse" in [gate.name for gate in found if not gate.passed]


def test_an_arms_score_has_precision_recall_and_f1_of_every_field_and_the_share_by_the_schema() -> None:
    asked = questions(4)
    texts = (asked[0].answer, json.dumps({**json.loads(asked[1].answer), "city": None, "total": "x"}), "no", "{}")
    answers = ArmAnswers(answers=texts, latencies_ms=(1.0,) * 4)
    report = arm_report(None, answers.graded(asked, 0, SPEC), asked, answers, SPEC)
    found = report.score
    by_field = {each.label: each for each in report.classes}
    assert by_field.keys() == set(FIELDS)
    city, total = by_field["city"], by_field["total"]
    assert (city.precision, city.recall, city.support) == (1.0, 0.25, 4)
    assert (total.precision, total.recall) == (0.5, 0.25)
    assert total.f1_interval is not None and total.f1_interval.low <= total.f1 <= total.f1_interval.high
    assert found.valid is not None and found.valid.value == 0.75
    assert found.accuracy.value == 0.25
    assert found.macro_f1 == pytest.approx(sum(each.f1 for each in report.classes) / 4)
