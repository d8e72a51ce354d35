"""Corrections with several labels: sets in one spelling, counted label by label."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.conversation import Answer, Call, FinishReason, Message, Role
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskSpec
from services.dataset_builder.building.carry_over import Revision, carry_over
from services.dataset_builder.building.personal_data import PersonalData
from services.dataset_builder.building.votes import UserCorrection, votes_of
from services.dataset_builder.inspection.gates import evaluate_gates, label_counts
from services.dataset_builder.inspection.report import Inspected, quality_report
from services.dataset_builder.inspection.summaries import summaries
from services.dataset_builder.pipeline import Build, Dataset, Inputs, build_dataset
from tests.unit.dataset_builder.test_gates import example
from tests.unit.shared.grading.tickets import LABELS, tickets, topics

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SPEC = tickets()
RIGHT = topics("delivery", "damage")
TEXTS = (
    "it came a week late and in pieces", "where do I find the bill", "money back please, the vase is cracked",
    "thank you, all is fine", "the courier never showed up",
)  # fmt: skip


def correction(label: str, number: int = 0, text: str | None = None, **fields: Any) -> CorrectionSubmitted:
    asked = (Message(role=Role.USER, content=text or TEXTS[number]),)
    return CorrectionSubmitted.model_validate({
        "occurred_at": NOON + timedelta(minutes=number), "task": "tickets", "task_revision": SPEC.revision,
        "correction_id": f"c{number}{fields.get('reviewer', '')}", "request_id": f"r{number}",
        "prediction_id": f"p{number}", "purpose": Purpose.LOW_CONFIDENCE, "reviewer": "ana",
        "call": Call(messages=asked), "answers": (Answer(text="[]"),), "label": label, **fields,
    })  # fmt: skip


def build(*corrections: CorrectionSubmitted, spec: TaskSpec = SPEC, **inputs: Any) -> Build:
    return build_dataset(Inputs(votes_of(corrections), spec, **inputs))


def answers(built: Build) -> list[str]:
    return sorted(row.answer for row in (*built.dataset.train, *built.dataset.eval))


def rejected(built: Build) -> dict[str, str]:
    return {row.prediction_ids[0]: row.reason for row in built.dataset.left_out}


def test_sets_are_trained_on_in_the_order_of_the_tasks_labels_each_label_once() -> None:
    turned = '["damage",\n "delivery", "damage"]'
    assert answers(build(correction(turned), correction(topics(), 3))) == [RIGHT, "[]"]


def test_two_reviewers_who_gave_the_labels_in_another_order_agree() -> None:
    built = build(correction(RIGHT), correction(topics("damage", "delivery"), reviewer="bob"))
    (row,) = (*built.dataset.train, *built.dataset.eval)
    assert (row.answer, len(row.correction_ids), built.questions) == (RIGHT, 2, ())
    assert built.measures.agreement is None or built.measures.agreement.agreement.value == 1.0


def test_reviewers_who_gave_different_sets_have_a_third_one_asked_for_a_set() -> None:
    built = build(correction(RIGHT), correction(topics("delivery"), reviewer="bob"))
    assert answers(built) == []
    (question,) = built.questions
    assert (question.purpose, question.labels) == (Purpose.TIE_BREAK, ())
    third = correction(topics("delivery"), reviewer="cem")
    assert answers(build(correction(RIGHT), correction(topics("delivery"), reviewer="bob"), third)) == ['["delivery"]']


def test_what_is_no_set_of_the_tasks_labels_is_rejected_with_the_reason() -> None:
    few = tickets(max_labels_per_answer=2)
    given = (topics("parcel"), "invoice", topics("damage", "damage", "refund"), topics(*LABELS))
    built = build(*(correction(text, n, task_revision=few.revision) for n, text in enumerate(given)), spec=few)
    assert answers(built) == [topics("damage", "refund")]
    assert rejected(built) == {"p0": "unknown_label", "p1": "invalid_json", "p3": "too_many_labels"}


@pytest.mark.parametrize(("text", "trained"), [(RIGHT, 1), (RIGHT[:-1], 0)])
def test_an_accepted_answer_that_was_cut_is_trained_on_if_it_is_a_whole_set(text: str, trained: int) -> None:
    cut = correction(text, answers=(Answer(text=text, finish_reason=FinishReason.LENGTH),))
    assert len(answers(build(cut))) == trained


def test_sets_of_an_earlier_revision_go_on_with_the_names_of_today_unless_a_label_is_gone() -> None:
    former = tickets(labels=[*LABELS, "bill", "praise"])
    today = tickets(renamed_labels={"bill": "invoice"})
    given = [
        correction(topics("bill", "damage"), task_revision=former.revision),
        correction(topics("praise", "damage"), 1, task_revision=former.revision),
        correction(topics(), 2, task_revision=former.revision),
    ]
    revisions = {former.revision: Revision(former.kind, former.system_prompt)}
    held, gone = carry_over(votes_of(given), today, revisions)
    assert [vote.label for vote in held] == [topics("damage", "invoice"), topics()]
    assert [row.reason for row in gone] == ["label_removed"]


def test_one_label_of_a_former_classification_is_no_set() -> None:
    """It does not say that no other label was right."""
    former = TaskSpec.model_validate({**SPEC.model_dump(), "kind": "classification"})
    given = [correction("damage", task_revision=former.revision)]
    held, gone = carry_over(votes_of(given), SPEC, {former.revision: Revision(former.kind, "")})
    assert (held, [row.reason for row in gone]) == ([], ["other_kind"])


@pytest.mark.parametrize("label", ["damage", "bill"])
def test_one_label_that_a_user_gave_is_a_set_of_one_under_its_name_of_today(label: str) -> None:
    former = tickets(labels=[*LABELS, "bill"])
    today = tickets(renamed_labels={"bill": "invoice"})
    shared = correction(label, task_revision=former.revision).model_dump(include=set(UserCorrection.model_fields))
    word = UserCorrection.model_validate({**shared, "author_hash": "u", "user_hash": "u", "predicted_at": NOON})
    held, gone = carry_over(votes_of([], [word]), today, {former.revision: Revision(former.kind, "")})
    assert ([vote.label for vote in held], gone) == ([topics("invoice" if label == "bill" else label)], [])


def test_equal_questions_with_different_sets_do_not_both_stay() -> None:
    given = (RIGHT, topics("damage", "delivery"), topics("refund"))
    built = build(*(correction(each, n, TEXTS[0], reviewer=f"r{n}") for n, each in enumerate(given)))
    assert set(answers(built)) <= {RIGHT}
    assert rejected(built)["p2"] == "conflicting_labels"


def dataset(*sets: str, held_out: int = 20) -> Dataset:
    rows = [example(number, each) for number, each in enumerate(sets)]
    return Dataset(tuple(rows), tuple(example(10_000 + n, RIGHT) for n in range(held_out)), ())


def gates(data: Dataset, spec: TaskSpec = SPEC, traffic: dict[str, int] | None = None) -> dict[str, tuple[bool, str]]:
    return {gate.name: (gate.passed, gate.detail) for gate in evaluate_gates(Build(data), spec, traffic or {})}


def test_a_row_counts_for_each_of_its_labels() -> None:
    data = dataset(*[RIGHT] * 30, *[topics("delivery")] * 40, *[topics()] * 5)
    assert label_counts(data, SPEC) == {"damage": 30, "delivery": 70}
    found = gates(data)
    assert found["labels_to_learn"] == (True, "none of: refund, invoice")


def test_rows_that_none_of_the_labels_fits_are_too_little_to_learn_from() -> None:
    found = gates(dataset(*[topics()] * 60))
    assert not found["labels_to_learn"][0]


def test_rows_of_one_label_are_too_little_to_learn_from() -> None:
    found = gates(dataset(*[topics("delivery")] * 60, *[topics()] * 10))
    assert not found["labels_to_learn"][0]


def test_what_one_label_a_row_is_needed_for_is_left_out_and_the_report_says_why() -> None:
    assert not {"label_noise", "labels_predictable"} & gates(dataset(RIGHT)).keys()
    built = build(*(correction(RIGHT, n) for n in range(5)))
    (noise,) = [part for part in summaries(built, SPEC, PersonalData()) if part.name == "label_noise"]
    assert noise.summary == "Not measured: answers have several labels, and the model tells one from another."


def unlike_each_other(sets: list[str], spec: TaskSpec) -> list[CorrectionSubmitted]:
    """Corrections of texts that share no word."""
    chance, letters = random.Random(3), "abcdefghijklmnopqrstuvwxyz"
    texts = [" ".join("".join(chance.choices(letters, k=7)) for _ in range(9)) for _ in sets]
    return [
        correction(each, n, text, task_revision=spec.revision)
        for n, (each, text) in enumerate(zip(sets, texts, strict=True))
    ]


def test_rows_are_held_out_of_every_label_though_few_sets_come_twice() -> None:
    """Ten rare labels of eight rows each, beside common ones: each gives its share, as none would of sets."""
    common, rare = [f"common {n}" for n in range(6)], [f"rare {n}" for n in range(10)]
    spec, chance = tickets(labels=[*common, *rare], dataset={"eval_share": 0.2}), random.Random(5)
    sets = [topics(*sorted(chance.sample(common, 3)), name) for name in rare for _ in range(8)]
    built = build(*unlike_each_other(sets, spec), spec=spec)
    held_out = Counter(name for row in built.dataset.eval for name in rare if f'"{name}"' in row.answer)
    assert len(built.dataset.eval) == pytest.approx(0.2 * len(sets), abs=2)
    assert {held_out[name] for name in rare} <= {1, 2}


def test_the_report_balances_labels_and_not_sets() -> None:
    built = build(
        *(correction(each, n) for n, each in enumerate((RIGHT, topics("invoice"), topics("damage"), topics())))
    )
    traffic = {RIGHT: 6, topics("damage"): 2, topics(): 2}
    inspected = Inspected(built, (), SPEC, evaluate_gates(built, SPEC, traffic), traffic)
    report = quality_report(inspected, "tickets-1", "cycle-1", NOON)
    assert {(each.label, each.corrected, each.train + each.eval, each.production) for each in report.labels} == {
        ("delivery", 1, 1, 0.6), ("damage", 2, 2, 0.8), ("refund", 0, 0, 0.0), ("invoice", 1, 1, 0.0),
    }  # fmt: skip
