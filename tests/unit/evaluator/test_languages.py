"""Rows are looked at by language where there are several, and nobody is split off by a wrong guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from schemas.conversation import Message, Role
from services.evaluator.comparison import Comparison
from services.evaluator.domain import Question
from services.evaluator.gates import check_gates
from services.evaluator.parts.languages import MIN_ROWS, with_languages
from tests.unit.evaluator.arms import NO_GOLDEN, arm, spec, stopped_by

ENGLISH = ("Where is the parcel that I ordered last week?", "I forgot my password and cannot log in.")
GERMAN = ("Wo bleibt das Paket, das ich letzte Woche bestellt habe?", "Ich habe mein Passwort vergessen.")


def asked(texts: Sequence[str]) -> list[Question]:
    return [Question((Message(role=Role.USER, content=text),), "a") for text in texts]


def languages(questions: Sequence[Question]) -> Counter[str]:
    return Counter(name for question in questions for name in question.slices)


def test_questions_of_two_languages_are_told_apart() -> None:
    found = with_languages(asked([ENGLISH[n % 2] for n in range(30)] + [GERMAN[n % 2] for n in range(MIN_ROWS)]))
    assert languages(found) == {"language en": 30, "language de": MIN_ROWS}


def test_one_language_and_a_few_of_another_are_no_slices() -> None:
    few = [ENGLISH[n % 2] for n in range(30)] + [GERMAN[n % 2] for n in range(MIN_ROWS - 1)]
    assert not languages(with_languages(asked(few)))


def test_what_cannot_be_told_is_of_no_language() -> None:
    numbers = ["4711", "", "   ", "12-34 ok"] * 5
    found = with_languages(asked([*(ENGLISH * 10), *(GERMAN * 10), *numbers]))
    assert languages(found) == {"language en": 20, "language de": 20}


def test_a_candidate_that_forgets_a_language_is_stopped_though_it_gains_as_much_elsewhere() -> None:
    questions = with_languages(asked([*(ENGLISH * 30), *(GERMAN * 10)]))
    evaluation = Comparison(questions, arm(questions, range(60)), arm(questions, [*range(40), *range(60, 80)]))
    task = spec(better_than_chance=False)
    gates = check_gates(task, evaluation, NO_GOLDEN)
    assert stopped_by(gates) == ["parts_not_worse"]
    assert "language de: 100% → 0% of 20 rows" in next(gate.detail for gate in gates if not gate.passed)
    assert "language en" in evaluation.parts(task)
