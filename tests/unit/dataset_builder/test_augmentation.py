"""Augmentation is off unless a task asks for it; every row that it brings, or weighs, says so."""

from __future__ import annotations

from collections import Counter

import pytest

from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Example, Fate, Origin
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.task_settings import AugmentationSettings, DatasetSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.augmentation import HARD_NEGATIVE_WEIGHT, augment, shown_right
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.pipeline import Dataset, Inputs, build_dataset

OFF = AugmentationSettings()
AUDITED = AugmentationSettings(audited=True)
HARD = AugmentationSettings(hard_negatives=True)
LABELS = ("refund", "delivery", "cancel")


def correction(
    n: int, label: str = "refund", answer: str = "refund", purpose: Purpose = Purpose.AUDIT, reviewer: str = "ana"
) -> CorrectionSubmitted:
    text = f"question number {n} {chr(97 + n % 26) * 9} about {n * 7919 % 1009}"
    return CorrectionSubmitted(
        task="desk", task_revision="1", correction_id=f"c{n}-{reviewer}", request_id=f"r{n}", prediction_id=f"p{n}",
        purpose=purpose, reviewer=reviewer, call=Call(messages=(Message(role=Role.USER, content=text),)),
        answers=(Answer(text=answer),), label=label,
    )  # fmt: skip


def example(n: int, label: str, mode: str | None = "m1", origin: Origin = Origin.REVIEWER) -> Example:
    messages = (Message(role=Role.USER, content=f"q{n}"), Message(role=Role.ASSISTANT, content=label))
    return Example(
        example_id=f"e{n}", messages=messages, group=f"g{n}", origin=origin, mode_id=mode, weight=0.5,
        prediction_ids=(f"p{n}",), correction_ids=(f"c{n}",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("corrections", "right"),
    [
        ([correction(1)], True),
        ([correction(1, answer="delivery")], False),
        ([correction(1, purpose=Purpose.LOW_CONFIDENCE)], False),
        ([correction(1), correction(1, reviewer="ben")], True),
        ([correction(1), correction(1, label="cancel", reviewer="ben")], False),
        ([correction(1), correction(1, purpose=Purpose.TIE_BREAK, reviewer="ben")], False),
    ],
)
def test_an_audit_shows_an_answer_right_if_everybody_who_was_asked_confirms_it(
    corrections: list[CorrectionSubmitted], right: bool
) -> None:
    assert shown_right(votes_of(corrections), TaskKind.CLASSIFICATION) == ({"p1"} if right else frozenset())


def test_answers_that_an_audit_showed_right_are_not_trained_on_unless_asked_for() -> None:
    rows = [example(1, "refund"), example(2, "delivery")]
    kept, left_out = augment(rows, {"p2"}, OFF)
    assert kept == rows[:1]
    assert [(row.fate, row.reason, row.prediction_ids) for row in left_out] == [(Fate.CAPPED, "right_already", ("p2",))]
    kept, left_out = augment(rows, {"p2"}, AUDITED)
    assert [row.origin for row in kept] == [Origin.REVIEWER, Origin.AUDITED]
    assert left_out == []


def test_hard_negatives_are_the_rows_of_a_mode_with_another_label_than_most_of_it() -> None:
    rows = [example(1, "refund"), example(2, "refund"), example(3, "cancel"), example(4, "cancel", mode=None)]
    kept, left_out = augment(rows, (), HARD)
    assert [row.origin is Origin.HARD_NEGATIVE for row in kept] == [False, False, True, False]
    assert kept[2].weight == 0.5 * HARD_NEGATIVE_WEIGHT
    assert left_out == []
    assert augment(rows, (), OFF)[0] == rows


def test_of_a_mode_whose_labels_tie_none_is_the_negative_of_the_other() -> None:
    rows = [example(1, "refund"), example(2, "cancel")]
    assert augment(rows, (), HARD)[0] == rows


def test_a_users_word_and_an_audited_answer_are_no_hard_negatives() -> None:
    rows = [example(1, "refund"), example(2, "refund"), example(3, "cancel", origin=Origin.USER), example(4, "cancel")]
    kept, _ = augment(rows, {"p4"}, AugmentationSettings(audited=True, hard_negatives=True))
    assert [row.origin for row in kept[2:]] == [Origin.USER, Origin.AUDITED]


def built(augmentation: AugmentationSettings) -> Dataset:
    spec = TaskSpec(
        name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="", labels=LABELS,
        dataset=DatasetSettings(augmentation=augmentation),
    )  # fmt: skip
    wrong = [correction(n, LABELS[n % 3], "none", Purpose.LOW_CONFIDENCE) for n in range(60)]
    audited = [correction(n, LABELS[n % 3], LABELS[n % 3]) for n in range(60, 160)]
    return build_dataset(Inputs(votes_of([*wrong, *audited]), spec)).dataset


def test_a_version_is_of_failures_unless_it_is_to_be_of_production_and_its_evaluation_set_is_the_same() -> None:
    usual, augmented = built(OFF), built(AUDITED)
    assert augmented.eval == usual.eval, "what was audited may be held out either way"
    more = Counter(row.origin for row in augmented.train) - Counter(row.origin for row in usual.train)
    assert set(more) == {Origin.AUDITED}
    assert len(augmented.train) > 2 * len(usual.train)
    left_out = Counter(row.reason for row in usual.left_out)
    assert left_out["right_already"] == more[Origin.AUDITED]
