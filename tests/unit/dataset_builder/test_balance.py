"""No source floods a training set, and classes count as much as audits say they should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from schemas.datasets import Example, Fate, LeftOutExample
from schemas.task_settings import BalanceSettings, DatasetSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.rows import Row
from services.dataset_builder.checks.balance import MAX_WEIGHT, MIN_WEIGHT, balance
from services.dataset_builder.checks.distribution import Audits, audited
from tests.unit.dataset_builder.test_gates import example
from tests.unit.dataset_builder.test_poisoning import row
from tests.unit.dataset_builder.voting import audits_of

NO_AUDITS = audited(())


def spec(**rules: object) -> TaskSpec:
    return TaskSpec(
        name="t",
        kind=TaskKind.CLASSIFICATION,
        system_prompt="",
        labels=("a", "b", "c"),
        dataset=DatasetSettings(balance=BalanceSettings.model_validate(rules)),
    )


def balanced(
    rows: Sequence[Row], audits: Audits = NO_AUDITS, groups: Sequence[str] = (), **rules: object
) -> tuple[dict[str, float], list[LeftOutExample]]:
    """The weights of the training rows by prediction, and the rows that are left out."""
    examples = [r.example(groups[n] if groups else f"g{n}") for n, r in enumerate(rows)]
    kept, left_out = balance(examples, rows, spec(**rules), audits)
    assert len(kept) + len(left_out) == len(rows)
    assert {r.fate for r in left_out} <= {Fate.CAPPED}
    assert all(MIN_WEIGHT <= e.weight <= MAX_WEIGHT for e in kept)
    return {e.prediction_ids[0]: e.weight for e in kept}, left_out


def made(loud: int, others: int, **source: Any) -> list[Row]:
    """Rows of one loud source, then those of others, each from a source of its own."""
    rows = [row(n, "ab"[n % 2], "a", "ana", "ben") for n in range(loud + others)]
    one = [_with(r, **source) for r in rows[:loud]]
    return [*one, *(_with(r, **{key: f"other {r.prediction_id}" for key in source}) for r in rows[loud:])]


def _with(r: Row, **update: Any) -> Row:
    if "voters" in update and isinstance(update["voters"], str):
        update["voters"] = (update["voters"],)
    return replace(r, **update)


def test_no_weight_is_under_the_least_also_where_no_source_is_loud() -> None:
    light, usual = (row(n, "a", "a", "ana", "ben") for n in range(2))
    assert balanced([_with(light, weight=0.05), usual])[0] == {
        light.prediction_id: MIN_WEIGHT,
        usual.prediction_id: 1.0,
    }


SOURCES = [
    ("per_mode", {"mode_id": "m1"}, 0.5), ("per_user", {"user_hash": "u1"}, 0.1), ("per_app", {"app": "shop"}, 0.9),
    ("per_reviewer", {"voters": "eve"}, 0.9),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "source", "share"), SOURCES)
def test_a_loud_source_counts_no_more_than_its_share(reason: str, source: dict[str, Any], share: float) -> None:
    limit = max(100, round(100 * share / (1 - share)))
    rows = made(6 * limit, 100, **source)
    weights, left_out = balanced(rows)
    loud = [weights[r.prediction_id] for r in rows[: 6 * limit] if r.prediction_id in weights]
    quiet = [weights[r.prediction_id] for r in rows[6 * limit :]]
    assert sum(loud) == pytest.approx(limit, rel=0.001)
    assert set(loud) == {MIN_WEIGHT}
    assert set(quiet) == {1.0}
    assert Counter(r.reason for r in left_out) == {reason: limit}


@pytest.mark.parametrize(("reason", "source", "share"), SOURCES)
def test_a_source_a_little_over_its_share_is_weighed_down_and_loses_no_row(
    reason: str, source: dict[str, Any], share: float
) -> None:
    limit = round(120 * share / (1 - share)) if share > 0.1 else 100
    rows = made(2 * limit, 120, **source)
    weights, left_out = balanced(rows)
    assert left_out == []
    assert {weights[r.prediction_id] for r in rows[: 2 * limit]} == {0.5}


@pytest.mark.parametrize(("reason", "source", "share"), SOURCES)
def test_small_sources_and_those_with_nothing_beside_them_are_left_alone(
    reason: str, source: dict[str, Any], share: float
) -> None:
    for rows in (made(100, 150, **source), made(3_000, 99, **source), made(500, 0, **source)):
        weights, left_out = balanced(rows)
        assert set(weights.values()) == {1.0}
        assert left_out == []


def test_a_share_of_one_is_no_limit() -> None:
    weights, left_out = balanced(made(3_000, 200, mode_id="m1"), max_mode_share=1.0)
    assert (set(weights.values()), left_out) == ({1.0}, [])


def test_near_copies_beyond_a_number_are_left_out() -> None:
    rows = [row(n, "a" if n < 30 else "b", "a", "ana", "ben") for n in range(35)]
    groups = ["same"] * 33 + ["x", "y"]
    weights, left_out = balanced(rows, groups=groups, max_copies=4)
    assert len(weights) == 4 + 5, "of those with another label none is left out"
    assert {(r.reason, r.detail) for r in left_out} == {("copies", "one of 30 near-copies, 4 of which are trained on")}


def test_which_rows_are_left_out_depends_on_no_order_and_hardly_on_later_rows() -> None:
    rows = made(2_000, 100, mode_id="m1")
    weights, _ = balanced(rows)
    again, _ = balanced(list(reversed(rows)))
    assert again == weights
    grown, _ = balanced([*rows, *made(2_300, 0, mode_id="m1")[2_100:]])
    assert len(set(weights) - set(grown)) < 100, "the same rows are chosen, but for a few that rank after new ones"


def test_classes_count_as_often_as_audits_say_within_bounds() -> None:
    rows = [row(n, "a" if n < 160 else "b" if n < 190 else "c", "a", "ana", "ben") for n in range(200)]
    audits = audited(audits_of({"a": 100, "b": 60, "c": 40}))
    weights, left_out = balanced(rows, audits)
    of = {label: {weights[r.prediction_id] for r in rows if r.label == label} for label in "abc"}
    assert of == {"a": {0.625}, "b": {2.0}, "c": {3.0}}
    assert left_out == []
    assert {weights[r.prediction_id] for r in rows} == {0.625, 2.0, 3.0}
    assert set(balanced(rows, audits, max_class_weight=1.0)[0].values()) == {1.0}
    assert set(balanced(rows)[0].values()) == {1.0}, "what is not audited is not known"


def test_a_class_with_too_few_rows_or_audits_is_left_as_it_is() -> None:
    rows = [row(n, "a" if n < 98 else "b", "a", "ana", "ben") for n in range(100)]
    weights, _ = balanced(rows, audited(audits_of({"a": 50, "b": 50})))
    assert weights["p00099"] == 1.0
    rows = [row(n, "ab"[n % 2], "a", "ana", "ben") for n in range(100)]
    weights, _ = balanced(rows, audited(audits_of({"a": 50, "b": 9})))
    assert {weights[r.prediction_id] for r in rows if r.label == "b"} == {1.0}


def test_a_few_audits_of_many_labels_weigh_nothing() -> None:
    """Together they are more than ten, but they say nothing about labels that none of them has."""
    rows = [row(n, "abc"[n % 3], "a", "ana", "ben") for n in range(300)]
    assert set(balanced(rows, audited(audits_of({"a": 7, "b": 7})))[0].values()) == {1.0}
    weights, _ = balanced(rows, audited(audits_of({"a": 20, "b": 20})))
    assert {weights[r.prediction_id] for r in rows if r.label == "c"} == {1.0}


def test_classes_that_differ_from_audits_by_chance_count_the_same() -> None:
    rows = [row(n, "a" if n < 110 else "b", "a", "ana", "ben") for n in range(200)]
    weights, _ = balanced(rows, audited(audits_of({"a": 50, "b": 50})))
    assert set(weights.values()) == {1.0}
    assert balanced([], audited(audits_of({"a": 50, "b": 50}))) == ({}, [])


def test_a_user_s_lower_weight_stays_below_a_reviewer_s() -> None:
    rows = made(100, 100, mode_id="m1")
    examples = [r.example("g").model_copy(update={"weight": 0.5, "group": f"g{n}"}) for n, r in enumerate(rows)]
    kept, _ = balance(examples, rows, spec(), NO_AUDITS)
    assert {e.weight for e in kept} == {0.5}


def test_rows_of_a_generation_task_have_no_class_weights() -> None:
    writing = TaskSpec(name="t", kind=TaskKind.GENERATION, system_prompt="")
    train: list[Example] = [example(n, "a" if n < 90 else "b") for n in range(100)]
    kept, _ = balance(train, (), writing, audited(audits_of({"a": 50, "b": 50})))
    assert kept == train
