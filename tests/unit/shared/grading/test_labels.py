"""Answers with several labels are sets: order and repetition say nothing."""

from __future__ import annotations

import pytest

from schemas.tasks import TaskKind, TaskSpec
from shared.grading.fields import FieldGrade
from shared.grading.grade import grade
from shared.grading.labels import canonical_labels, counts_by_label, counts_by_set, labels_of, set_of_one
from shared.grading.text import same_answer
from tests.unit.shared.grading.tickets import tickets, topics

SPEC = tickets()
DESK = TaskSpec.model_validate({**SPEC.model_dump(), "kind": "classification"})
RIGHT = topics("delivery", "refund")


@pytest.mark.parametrize("given", [RIGHT, topics("refund", "delivery"), ' [ "refund","delivery" ,"refund"]\n'])
def test_order_repetition_and_layout_do_not_matter(given: str) -> None:
    found = grade(SPEC, RIGHT, given)
    assert (found.score, found.right, found.valid) == (1.0, True, True)
    assert canonical_labels(given, SPEC) == RIGHT
    assert same_answer(given, RIGHT, SPEC.kind)


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
    found = grade(SPEC, expected, given)
    assert (found.score, found.right) == (pytest.approx(score), False)
    assert not same_answer(given, expected, SPEC.kind)


def test_labels_are_spelled_in_the_tasks_order() -> None:
    assert canonical_labels(topics("refund", "damage", "delivery"), SPEC) == topics("delivery", "damage", "refund")


def test_no_label_is_right_where_none_fits() -> None:
    assert grade(SPEC, topics(), topics()).right


def test_every_label_that_is_given_or_right_is_graded_by_itself() -> None:
    assert grade(SPEC, RIGHT, topics("invoice", "delivery")).fields == (
        FieldGrade("delivery", 1, 1, 1),
        FieldGrade("invoice", 0, 1, 0),
        FieldGrade("refund", 0, 0, 1),
    )


@pytest.mark.parametrize("given", ["delivery, refund", '"delivery"', "{}", topics("delivery", "parcel"), "[1]", None])
def test_what_is_no_list_of_the_tasks_labels_is_worth_nothing_and_misses_every_right_label(given: str | None) -> None:
    found = grade(SPEC, RIGHT, given)
    assert (found.score, found.right, found.valid) == (0.0, False, False)
    assert [(field.path, field.matched, field.given) for field in found.fields] == [
        ("delivery", 0, 0),
        ("refund", 0, 0),
    ]
    assert grade(SPEC, topics(), given).right is False


def test_more_labels_than_an_answer_may_have_are_refused_but_repetitions_count_once() -> None:
    narrow = tickets(max_labels_per_answer=1)
    assert canonical_labels(topics("damage", "damage"), narrow) == topics("damage")
    with pytest.raises(ValueError, match="2 labels; an answer has at most 1"):
        canonical_labels(RIGHT, narrow)


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
        canonical_labels(given, SPEC)


def test_lists_of_generated_text_keep_their_order() -> None:
    assert not same_answer(topics("b", "a"), topics("a", "b"), TaskKind.GENERATION)


def test_an_answer_counts_for_each_of_its_labels_and_what_is_none_stays() -> None:
    given = {RIGHT: 2, topics("refund"): 3, topics(): 4, "no idea": 1}
    assert counts_by_label(given, SPEC) == {"delivery": 2, "refund": 5, "no idea": 1}
    assert counts_by_label({"refund": 3, "no idea": 1}, DESK) == {"refund": 3, "no idea": 1}


def test_answers_are_counted_in_one_spelling() -> None:
    given = {RIGHT: 2, topics("refund", "delivery"): 3, "no idea": 1}
    assert counts_by_set(given, SPEC) == {RIGHT: 5, "no idea": 1}
    assert counts_by_set({RIGHT: 2, "refund": 1}, DESK) == {RIGHT: 2, "refund": 1}


def test_which_labels_an_answer_has_follows_from_the_kind() -> None:
    assert labels_of("refund", DESK) == {"refund"}
    assert labels_of(RIGHT, SPEC) == {"delivery", "refund"}
    for text, spec in ((RIGHT, DESK), ("refund", SPEC), (topics("parcel"), SPEC)):
        assert labels_of(text, spec) is None


def test_a_label_that_a_user_names_as_it_is_called_is_a_set_of_one() -> None:
    assert same_answer(set_of_one("refund", SPEC), topics("refund"), TaskKind.MULTI_LABEL)
    assert set_of_one(RIGHT, SPEC) == RIGHT
    assert set_of_one("nothing of it", SPEC) == "nothing of it"
