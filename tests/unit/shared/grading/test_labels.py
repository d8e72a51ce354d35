"""Answers with several labels are sets: order and repetition say nothing."""

from __future__ import annotations

import pytest

from schemas.tasks import TaskKind, TaskSpec
from shared.answers import answer_form, form_of_kind
from shared.grading.fields import FieldGrade
from tests.unit.shared.grading.tickets import tickets, topics

SPEC = tickets()
DESK = TaskSpec.model_validate({**SPEC.model_dump(), "kind": "classification"})
RIGHT = topics("delivery", "refund")


@pytest.mark.parametrize("given", [RIGHT, topics("refund", "delivery"), ' [ "refund","delivery" ,"refund"]\n'])
def test_order_repetition_and_layout_do_not_matter(given: str) -> None:
    found = answer_form(SPEC).grade(RIGHT, given)
    assert (found.score, found.right, found.valid) == (1.0, True, True)
    assert answer_form(SPEC).canonical(given) == RIGHT
    assert form_of_kind(SPEC.kind).same(given, RIGHT)


@pytest.mark.parametrize(
    ("expected", "given", "score"),
    [
        (RIGHT, topics("delivery"), 2 / 3),
        (RIGHT, topics("delivery", "damage"), 1 / 2),
        (RIGHT, topics("damage"), 0.0),
        (RIGHT, topics(), 0.0),
        (topics(), topics("damage"), 0.0),
    ],
)
def test_the_score_is_the_f1_of_the_answers_labels_and_right_is_the_whole_set(
    expected: str, given: str, score: float
) -> None:
    found = answer_form(SPEC).grade(expected, given)
    assert (found.score, found.right) == (pytest.approx(score), False)
    assert not form_of_kind(SPEC.kind).same(given, expected)


def test_labels_are_spelled_in_the_tasks_order() -> None:
    assert answer_form(SPEC).canonical(topics("refund", "damage", "delivery")) == topics("delivery", "damage", "refund")


def test_no_label_is_right_where_none_fits() -> None:
    assert answer_form(SPEC).grade(topics(), topics()).right


def test_every_label_that_is_given_or_right_is_graded_by_itself() -> None:
    assert answer_form(SPEC).grade(RIGHT, topics("invoice", "delivery")).fields == (
        FieldGrade("delivery", 1, 1, 1),
        FieldGrade("invoice", 0, 1, 0),
        FieldGrade("refund", 0, 0, 1),
    )


@pytest.mark.parametrize("given", ["delivery, refund", '"delivery"', "{}", topics("delivery", "parcel"), "[1]", None])
def test_what_is_no_list_of_the_tasks_labels_is_worth_nothing_and_misses_every_right_label(given: str | None) -> None:
    found = answer_form(SPEC).grade(RIGHT, given)
    assert (found.score, found.right, found.valid) == (0.0, False, False)
    assert [(field.path, field.matched, field.given) for field in found.fields] == [
        ("delivery", 0, 0),
        ("refund", 0, 0),
    ]
    assert answer_form(SPEC).grade(topics(), given).right is False


def test_more_labels_than_an_answer_may_have_are_refused_but_repetitions_count_once() -> None:
    narrow = tickets(max_labels_per_answer=1)
    assert answer_form(narrow).canonical(topics("damage", "damage")) == topics("damage")
    with pytest.raises(ValueError, match="2 labels; an answer has at most 1"):
        answer_form(narrow).canonical(RIGHT)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("delivery", 'no JSON .*expected a JSON list of labels, such as \\["delivery", "damage"\\]'),
        ('"delivery"', "no list of labels: expected a JSON list"),
        (topics("parcel"), "'parcel' is not a label of the task; its labels: delivery, damage, refund, invoice"),
    ],
)
def test_an_answer_that_is_none_is_refused_with_what_it_must_be(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        answer_form(SPEC).canonical(given)


def test_lists_of_generated_text_keep_their_order() -> None:
    assert not form_of_kind(TaskKind.GENERATION).same(topics("b", "a"), topics("a", "b"))


def test_an_answer_counts_for_each_of_its_labels_and_what_is_none_stays() -> None:
    given = {RIGHT: 2, topics("refund"): 3, topics(): 4, "no idea": 1}
    assert answer_form(SPEC).counts_by_label(given) == {"delivery": 2, "refund": 5, "no idea": 1}
    assert answer_form(DESK).counts_by_label({"refund": 3, "no idea": 1}) == {"refund": 3, "no idea": 1}


def test_answers_are_counted_in_one_spelling() -> None:
    given = {RIGHT: 2, topics("refund", "delivery"): 3, "no idea": 1}
    assert answer_form(SPEC).counts_by_answer(given) == {RIGHT: 5, "no idea": 1}
    assert answer_form(DESK).counts_by_answer({RIGHT: 2, "refund": 1}) == {RIGHT: 2, "refund": 1}


def test_which_labels_an_answer_has_follows_from_the_kind() -> None:
    assert answer_form(DESK).labels("refund") == {"refund"}
    assert answer_form(SPEC).labels(RIGHT) == {"delivery", "refund"}
    for text, spec in ((RIGHT, DESK), ("refund", SPEC), (topics("parcel"), SPEC)):
        assert answer_form(spec).labels(text) is None


def test_a_label_that_a_user_names_as_it_is_called_is_a_set_of_one() -> None:
    assert form_of_kind(TaskKind.MULTI_LABEL).same(answer_form(SPEC).from_user("refund"), topics("refund"))
    assert answer_form(SPEC).from_user(RIGHT) == RIGHT
    assert answer_form(SPEC).from_user("nothing of it") == "nothing of it"
