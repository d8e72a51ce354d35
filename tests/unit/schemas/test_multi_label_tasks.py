"""A multi-label task has labels, several of which may be right at once."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.tasks import TaskSpec
from tests.unit.shared.grading.tickets import LABELS, tickets

CLASSES = {"name": "desk", "kind": "classification", "system_prompt": "", "labels": ["a", "b"]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ["delivery"]}, "a multi_label task needs at least two labels"),
        ({"max_labels_per_answer": 5}, "max_labels_per_answer is more than the task's 4 labels"),
        ({"max_labels_per_answer": 0}, "greater than or equal to 1"),
        ({"output_schema": {"type": "object"}}, "`output_schema` is of extraction tasks"),
        (
            {"rollout": {"severity": [{"truth": "refund", "answer": "damage", "weight": 0.5}]}},
            "rollout.severity weighs one label in the place of another",
        ),
    ],
)
def test_what_does_not_fit_the_kind_is_refused_with_the_reason(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        tickets(**changes)


def test_only_answers_with_several_labels_have_a_most() -> None:
    with pytest.raises(ValidationError, match="`max_labels_per_answer` is of multi_label tasks, and this is a class"):
        TaskSpec.model_validate({**CLASSES, "max_labels_per_answer": 1})


@pytest.mark.parametrize(("most", "written"), [(None, 4), (2, 2)])
def test_answers_are_constrained_to_a_list_of_the_labels_with_so_many_items(most: int | None, written: int) -> None:
    spec = tickets(max_labels_per_answer=most)
    items = {"type": "string", "enum": list(LABELS)}
    assert spec.answer_schema == {"type": "array", "items": items, "maxItems": written}
    assert spec.choices == ()  # No answer is one of the labels by itself.


def test_a_list_is_no_longer_than_a_confidence_has_fields() -> None:
    many = tickets(labels=[f"label {n}" for n in range(300)])
    assert many.answer_schema is not None and many.answer_schema["maxItems"] == 200


def test_another_most_makes_another_revision() -> None:
    assert tickets(max_labels_per_answer=2).revision != tickets().revision
    assert tickets().revision == tickets(labels=LABELS[::-1]).revision
