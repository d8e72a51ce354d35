"""Calls are compared by function and argument: what is worse in one function is stopped."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from schemas.base import Gate
from schemas.conversation import Message, Role
from services.evaluator.comparison import Comparison
from services.evaluator.domain import GradedAnswers, Question
from services.evaluator.gates import check_gates
from services.evaluator.recipe import ArmAnswers, ask
from services.evaluator.report.arms import arm_report
from services.evaluator.report.parts import part_scores
from services.evaluator.statistics.classes import called_functions
from shared.answers import answer_form
from shared.conversation.task_tools import chat_fields
from shared.grading.fields import FieldGrade
from tests.unit.evaluator.engine import FakeEngine
from tests.unit.shared.grading.home import STOPS, book, calls, home, light

HOME = home()
NONE = Comparison((), GradedAnswers((), ()), GradedAnswers((), ()))
Spoil = Callable[[str, random.Random], str]


def questions(n: int = 120) -> list[Question]:
    made = (light, book, lambda: STOPS)
    return [Question((Message(role=Role.USER, content=f"message {i}"),), calls(made[i % 3]())) for i in range(n)]


def arm(asked: Sequence[Question], spoil: Spoil, seed: int = 0) -> GradedAnswers:
    rng = random.Random(seed)
    answers = tuple(spoil(question.answer, rng) for question in asked)
    return GradedAnswers(
        answers, tuple(answer_form(HOME).grade(q.answer, a) for a, q in zip(answers, asked, strict=True))
    )


def good(answer: str, rng: random.Random) -> str:
    """One answer in twelve calls the wrong function."""
    return answer if rng.random() > 1 / 12 else calls(light("hall", False))


def gates(spoil: Spoil) -> dict[str, Gate]:
    asked = questions()
    found = check_gates(HOME, Comparison(asked, arm(asked, spoil), arm(asked, good, seed=1)), NONE)
    return {gate.name: gate for gate in found}


def test_an_equal_candidate_passes_every_gate() -> None:
    assert all(gate.passed for gate in gates(good).values())


def forgets_stop(answer: str, rng: random.Random) -> str:
    return good(answer if '"stop"' not in answer else calls(book("Nobody")), rng)


def forgets_on(answer: str, rng: random.Random) -> str:
    return good(answer.replace("true", "false"), rng)


@pytest.mark.parametrize(
    ("spoil", "part"), [(forgets_stop, "function stop: "), (forgets_on, "argument set_light.on: ")]
)
def test_a_function_or_an_argument_that_gets_worse_is_named_and_stops(spoil: Spoil, part: str) -> None:
    gate = gates(spoil)["parts_not_worse"]
    assert not gate.passed
    assert part in gate.detail


@pytest.mark.parametrize("spoil", [lambda a, rng: a[:-1], lambda a, rng: "Sure!", lambda a, rng: calls(STOPS)])
def test_calls_that_cannot_be_run_and_one_function_for_everything_are_stopped(spoil: Spoil) -> None:
    assert not gates(spoil)["not_worse"].passed


def test_the_scores_are_of_functions_of_their_arguments_and_of_whole_answers() -> None:
    asked = questions(6)
    right = [question.answer for question in asked]
    given = (right[0], calls(book("other")), calls(light()), calls(light("hall")), right[4], "Sure!")
    answered = ArmAnswers(answers=given, latencies_ms=(1.0,) * 6)
    report = arm_report(None, answered.graded(asked, 0, HOME), asked, answered, HOME)
    found = report.score
    assert (found.accuracy.value, found.function_accuracy and found.function_accuracy.value) == (2 / 6, 4 / 6)
    assert found.valid is not None and found.valid.value == pytest.approx(5 / 6)
    assert [(c.label, c.precision, c.recall, c.support) for c in report.classes] == [
        ("book_table", 1.0, 1.0, 2), ("set_light", pytest.approx(2 / 3), 1.0, 2), ("stop", 0.0, 0.0, 2),
    ]  # fmt: skip
    assert {c.label: c.f1 for c in report.arguments} == {
        "book_table": pytest.approx(3 / 4), "set_light": pytest.approx(2 * 3 / (6 + 4)),
    }  # fmt: skip
    assert {(c.expected, c.given, c.count) for c in report.confusions} == {
        ("book_table", "book_table", 2), ("set_light", "set_light", 2), ("stop", "set_light", 1),
        ("stop", "(no label)", 1),
    }  # fmt: skip
    assert report.classes[0].f1_interval is not None


def test_the_right_function_with_an_argument_too_many_is_the_right_function() -> None:
    find = {"name": "find", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}
    spec, asked = home(tools=[find], comparators={}), [replace(questions(1)[0], answer=calls(("find", {"q": "x"})))]
    answered = ArmAnswers(answers=(calls(("find", {"q": "x", "more": 1})),), latencies_ms=(1.0,))
    report = arm_report(None, answered.graded(asked, 0, spec), asked, answered, spec)
    assert report.score.function_accuracy is not None and report.score.function_accuracy.value == 1.0
    assert [(cell.expected, cell.given) for cell in report.confusions] == [("find", "find")]
    assert [score.label for score in report.classes] == ["find"]


def confused(*answers: str) -> list[tuple[str, str]]:
    """What the report says was right and was given, where no call at all is right."""
    spec = home(tool_choice="auto", calls_per_answer="any_order")
    asked = [Question((Message(role=Role.USER, content=f"message {i}"),), "None.") for i in range(len(answers))]
    answered = ArmAnswers(answers=answers, latencies_ms=(1.0,))
    report = arm_report(None, answered.graded(asked, 0, spec), asked, answered, spec)
    return [(cell.expected, cell.given) for cell in report.confusions]


def test_a_function_that_is_called_many_times_is_named_once_with_its_count() -> None:
    assert confused(calls(*[light()] * 30, STOPS)) == [("(no call)", "set_light ×30 stop")]


def test_answers_that_call_more_functions_than_a_name_may_say_stay_different() -> None:
    names = [f"{letter * 60}{n}" for letter in "abcdefgh" for n in range(2)]
    grades = [[FieldGrade(name, 0, 1, 0) for name in some] for some in (names, names[:-1], names[1:])]
    said = [called_functions(fields, given=True) for fields in grades]
    assert len(set(said)) == 3
    assert all(len(each) == 200 for each in said)
    assert said[0].startswith(f"{names[0]} {names[1]} ")


async def test_arms_are_asked_with_the_functions_of_the_task_as_the_gateway_asks() -> None:
    engine, old = FakeEngine(lambda request: calls(STOPS)), ({"type": "function", "function": {"name": "former"}},)
    asked = [Question((Message(role=Role.USER, content="stop"),), calls(STOPS), tools=old)]
    found = await ask(engine, "base", asked, HOME, 1, lambda done: None)
    assert found.answers == (calls(STOPS),)
    (request,) = engine.requests
    assert (request.fields, request.tools) == ({"logprobs": True, **chat_fields(HOME)}, ()), "not with the row's own"


def test_the_report_names_functions_and_arguments_as_such() -> None:
    asked = questions()
    parts = part_scores(Comparison(asked, arm(asked, good), arm(asked, good, seed=1)), HOME)
    kinds = {(part.kind, part.name) for part in parts}
    assert {("function", "stop"), ("argument", "set_light.on")} <= kinds
