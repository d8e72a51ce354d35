"""Sets of labels are compared label by label: what is worse in one label is stopped, and order decides nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from schemas.adversarial import AdversarialKind
from schemas.base import Gate
from schemas.conversation import Message, Role
from services.evaluator.adversarial.cases import Case, adversarial_cases
from services.evaluator.adversarial.misled import obeys
from services.evaluator.comparison import Comparison
from services.evaluator.domain import GradedAnswers, Question
from services.evaluator.gates import check_gates
from services.evaluator.recipe import ArmAnswers, ask
from services.evaluator.report.arms import arm_report
from services.evaluator.report.parts import part_scores
from shared.answers import answer_form
from shared.conversation.response_format import response_format
from tests.unit.evaluator.engine import FakeEngine
from tests.unit.shared.grading.tickets import LABELS, tickets, topics

SPEC = tickets()
NONE = Comparison((), GradedAnswers((), ()), GradedAnswers((), ()))
Spoil = Callable[[list[str], random.Random], str]


def questions(n: int = 120) -> list[Question]:
    sets = [LABELS[i % 4 : i % 4 + 1 + i % 2] for i in range(n)]
    return [Question((Message(role=Role.USER, content=f"ticket {i}"),), topics(*each)) for i, each in enumerate(sets)]


def graded(asked: Sequence[Question], answers: Sequence[str | None]) -> GradedAnswers:
    return GradedAnswers(
        tuple(answers), tuple(answer_form(SPEC).grade(q.answer, a) for a, q in zip(answers, asked, strict=True))
    )


def arm(asked: Sequence[Question], spoil: Spoil, seed: int = 0) -> GradedAnswers:
    rng = random.Random(seed)
    return graded(asked, [spoil(json.loads(question.answer), rng) for question in asked])


def good(labels: list[str], rng: random.Random) -> str:
    """One answer in twelve misses all labels."""
    return topics(*labels) if rng.random() > 1 / 12 else topics()


def gates(spoil: Spoil) -> dict[str, Gate]:
    asked = questions()
    found = check_gates(SPEC, Comparison(asked, arm(asked, spoil), arm(asked, good, seed=1)), NONE)
    return {gate.name: gate for gate in found}


def test_a_candidate_that_says_the_same_sets_in_another_order_passes_every_gate() -> None:
    assert all(gate.passed for gate in gates(lambda labels, rng: good(labels[::-1] * 2, rng)).values())


def test_a_label_that_is_never_given_any_more_is_named_and_stops() -> None:
    gate = gates(lambda labels, rng: good([label for label in labels if label != "invoice"], rng))["parts_not_worse"]
    assert not gate.passed
    assert "label invoice: " in gate.detail and "label delivery" not in gate.detail


def test_a_label_that_is_given_to_everything_is_named_and_stops() -> None:
    found = gates(lambda labels, rng: good([*labels, "refund"], rng))
    assert not found["parts_not_worse"].passed
    assert "label refund: " in found["parts_not_worse"].detail


@pytest.mark.parametrize(
    "spoil",
    [lambda x, rng: "refund", lambda x, rng: topics(*x)[:-1], lambda x, rng: topics(), lambda x, rng: topics(*LABELS)],
    ids=["one label, no list", "invalid JSON", "nothing", "everything"],
)
def test_what_is_no_list_and_the_same_set_for_everything_are_stopped(spoil: Spoil) -> None:
    assert not gates(spoil)["not_worse"].passed


def test_the_scores_are_micro_and_macro_f1_of_labels_and_the_share_of_whole_sets() -> None:
    right = [("delivery", "damage"), ("delivery",), ("refund",), ()]
    given = [topics("damage", "delivery"), topics("delivery", "refund"), "refund", topics()]
    asked = [Question((Message(role=Role.USER, content=str(i)),), topics(*each)) for i, each in enumerate(right)]
    answered = ArmAnswers(answers=tuple(given), latencies_ms=(1.0,) * 4)
    report = arm_report(None, answered.graded(asked, 0, SPEC), asked, answered, SPEC)
    found = report.score
    assert found.accuracy.value == 2 / 4  # The first and the last.
    assert found.score is not None and found.score.value == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    assert found.valid is not None and found.valid.value == 3 / 4
    assert [(c.label, c.precision, c.recall, c.support) for c in report.classes] == [
        ("damage", 1.0, 1.0, 1), ("delivery", 1.0, 1.0, 2), ("refund", 0.0, 0.0, 1),
    ]  # fmt: skip
    averages = {average.kind: average for average in found.averages}
    assert averages["macro"].f1.value == found.macro_f1 == pytest.approx(2 / 3)
    micro = averages["micro"]
    assert (micro.precision.value, micro.recall.value) == (3 / 4, 3 / 4)
    assert micro.f1.value == pytest.approx(3 / 4)
    assert micro.f1.low < micro.f1.value < micro.f1.high
    assert report.confusions == ()


def test_parts_of_the_report_are_labels() -> None:
    asked = questions()
    parts = part_scores(Comparison(asked, arm(asked, good), arm(asked, good, seed=1)), SPEC)
    assert {part.name for part in parts if part.kind == "label"} == set(LABELS)
    assert not {"class", "field"} & {part.kind for part in parts}


async def test_arms_are_asked_for_a_list_of_labels_as_the_gateway_asks() -> None:
    engine, tool = FakeEngine(lambda request: topics("refund")), {"type": "function", "function": {"name": "former"}}
    asked = [replace(question, tools=(tool,)) for question in questions(1)]
    await ask(engine, "base", asked, SPEC, 1, lambda done: None)
    (request,) = engine.requests
    assert (request.choices, tuple(request.tools)) == ((), ())
    assert request.fields == {"logprobs": True, "response_format": response_format(SPEC)}


def injection(target: str) -> Case:
    return Case(AdversarialKind.INJECTION, questions(1)[0], 0, "", target)


@pytest.mark.parametrize(
    ("answer", "clean", "obeyed"),
    [
        (topics("delivery", "refund"), topics("delivery"), True),
        (topics("refund"), topics("refund", "delivery"), False),
        ("HACKED", topics("delivery"), True),
        (topics("delivery"), topics("delivery"), False),
    ],
    ids=["the label is added", "it was there without it", "no set at all", "it is not followed"],
)
def test_an_injection_is_obeyed_if_the_label_that_it_wants_is_given(answer: str, clean: str, obeyed: bool) -> None:
    assert obeys(SPEC, injection("refund"), answer, clean) is obeyed


def test_another_order_of_the_same_labels_obeys_nothing() -> None:
    assert not obeys(SPEC, injection(""), topics("refund", "damage"), topics("damage", "refund"))
    assert obeys(SPEC, injection(""), topics("refund"), topics("damage", "refund"))


def test_an_injection_asks_for_a_label_that_is_not_right() -> None:
    spec = tickets(evaluation={"adversarial": {"kinds": ["injection"], "rows": 40}})
    cases = adversarial_cases(questions(40), spec, None)
    targets = [(case.target, json.loads(case.question.answer)) for case in cases if case.target]
    assert len(targets) > 20
    assert all(target in LABELS and target not in right for target, right in targets)
