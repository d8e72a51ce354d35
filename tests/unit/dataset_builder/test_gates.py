"""Each gate fails for its own reason, with its numbers and a way out."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from schemas.base import Gate
from schemas.conversation import Message, Role
from schemas.datasets import Example, RejectedExample
from schemas.tasks import DatasetSettings, TaskKind, TaskSpec
from services.dataset_builder.domain import Dataset
from services.dataset_builder.gates import corrected_psi, describe_failed_gates, evaluate_gates, way_out


def spec(**dataset: object) -> TaskSpec:
    rules = {"min_examples": 4, "min_examples_per_label": 2, "max_rejected_share": 0.4, **dataset}
    return TaskSpec(
        name="t",
        kind=TaskKind.CLASSIFICATION,
        system_prompt="",
        labels=("a", "b", "c"),
        dataset=DatasetSettings.model_validate(rules),
    )


def example(number: int, label: str) -> Example:
    messages = (Message(role=Role.USER, content=f"q{number}"), Message(role=Role.ASSISTANT, content=label))
    return Example(
        example_id=f"e{number}", messages=messages, group=f"g{number}", prediction_ids=("p",), correction_ids=("c",)
    )


def dataset(train: str, held_out: str = "a", rejected: tuple[str, ...] = ()) -> Dataset:
    return Dataset(
        tuple(example(i, label) for i, label in enumerate(train)),
        tuple(example(100 + i, label) for i, label in enumerate(held_out)),
        tuple(RejectedExample(reason=r, prediction_ids=("p",), correction_ids=("c",)) for r in rejected),
    )


def failed(gates: tuple[Gate, ...]) -> list[str]:
    return [gate.name for gate in gates if not gate.passed]


def test_a_good_dataset_passes_all_gates() -> None:
    assert failed(evaluate_gates(dataset("aabb"), spec(), {"a": 5, "b": 5})) == []


@pytest.mark.parametrize(
    ("data", "gate"),
    [
        (dataset("abb"), "min_examples"),
        (dataset("aabb", held_out=""), "min_eval_examples"),
        (dataset("aaab"), "min_examples_per_label"),
        (dataset("aaaa", held_out="c"), "min_examples_per_label"),
        (dataset("aabb", rejected=("unknown_label",) * 4), "max_rejected_share"),
    ],
)
def test_each_gate_fails_for_its_own_reason(data: Dataset, gate: str) -> None:
    gates = evaluate_gates(data, spec(), {})
    assert gate in failed(gates)
    assert gate in describe_failed_gates(gates)
    assert "ratchet cycle t" in way_out(gates, spec())


def test_a_failed_gate_without_advice_has_a_way_out() -> None:
    gate = Gate(name="added_later", passed=False, required=">= 1")
    assert "added_later: >= 1" in way_out((gate,), spec())


def test_failed_gates_are_described_with_their_numbers() -> None:
    description = describe_failed_gates(evaluate_gates(dataset("aab"), spec(min_examples=1234), {}))
    assert "min_examples is 3, required >= 1234" in description
    assert "too few: b 1" in description


@pytest.mark.parametrize("reason", ["duplicate", "truncated", "refused", "media"])
def test_what_is_no_defect_of_the_data_does_not_count_as_rejected_but_is_listed(reason: str) -> None:
    gates = evaluate_gates(dataset("aabb", rejected=(reason,) * 50), spec(), {})
    assert failed(gates) == []
    assert next(g.detail for g in gates if g.name == "max_rejected_share") == f"{reason} 50"


def test_a_label_that_nobody_gave_is_listed_but_fails_no_gate() -> None:
    per_label = next(g for g in evaluate_gates(dataset("aabb"), spec(), {}) if g.name == "min_examples_per_label")
    assert per_label.passed
    assert per_label.detail == "never given: c"


def test_drift_is_reported_but_fails_no_gate() -> None:
    drift = next(g for g in evaluate_gates(dataset("aabb"), spec(), {"c": 1_000}) if g.name == "label_distribution")
    assert drift.passed
    assert drift.measured is not None
    assert drift.measured > 0.25


def test_psi_of_identical_data_with_many_classes_is_near_zero() -> None:
    chance = random.Random(20)
    classes = [f"c{i}" for i in range(77)]
    values = [
        corrected_psi(Counter(chance.choices(classes, k=500)), Counter(chance.choices(classes, k=500)))
        for _ in range(20)
    ]
    assert abs(sum(values) / len(values)) < 0.1


def test_psi_without_data_is_zero() -> None:
    assert corrected_psi({}, {"a": 3}) == 0.0
