"""The gates that a dataset must pass before training, all of them and in their order. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from schemas.base import Gate
from schemas.tasks import TaskSpec
from services.dataset_builder.building.personal_data import PersonalData
from services.dataset_builder.inspection.gate import DatasetGate, Inspection
from services.dataset_builder.inspection.label_gates import (
    FewWrongLabels,
    LabelDistribution,
    LabelsPredictable,
    LabelsToLearn,
    ReviewersAgree,
)
from services.dataset_builder.inspection.row_gates import (
    Leakage,
    MaxHeldBackShare,
    MaxRejectedShare,
    MinEvalExamples,
    MinExamples,
    NoPersonalData,
)
from services.dataset_builder.pipeline import Build, Dataset
from shared.answers import answer_form

GATES: tuple[DatasetGate, ...] = (
    MinExamples(), MinEvalExamples(), MaxRejectedShare(), Leakage(), NoPersonalData(), MaxHeldBackShare(),
    LabelsToLearn(), ReviewersAgree(), LabelDistribution(), FewWrongLabels(), LabelsPredictable(),
)  # fmt: skip
_NOTHING_FOUND = PersonalData()
BY_NAME = {gate.name: gate for gate in GATES}


def evaluate_gates(
    build: Build, spec: TaskSpec, traffic: Mapping[str, int], personal_data: PersonalData = _NOTHING_FOUND
) -> tuple[Gate, ...]:
    """Return all gates of the task, passed or not. `traffic`: how often production gave each answer in the last hours.

    `personal_data`: what the pass over the corrections found.
    """
    inspected = Inspection(build, spec, traffic, personal_data)
    return tuple(gate.measure(inspected) for gate in GATES if gate.applies_to(spec))


def describe_failed_gates(gates: tuple[Gate, ...]) -> str:
    """Return the gates that failed, with their numbers."""
    failures = []
    for gate in gates:
        if not gate.passed:
            measured = f"{round(gate.measured, 3):g}" if gate.measured is not None else "unknown"
            detail = f" ({gate.detail})" if gate.detail else ""
            failures.append(f"{gate.name} is {measured}, required {gate.required}{detail}")
    return "; ".join(failures)


def advice(gate: Gate) -> str:
    """Return what an operator does about a gate that failed or could not be measured."""
    rule = BY_NAME[gate.name]
    return rule.to_know if gate.passed and gate.measured is None else rule.remedy


def way_out(gates: tuple[Gate, ...], spec: TaskSpec) -> str:
    """Return what an operator does about the gates that failed."""
    failed = " ".join(advice(gate) for gate in gates if not gate.passed)
    return f"{failed} Then start a new cycle: ratchet cycle {spec.name}"


def gates_table() -> str:
    """Return the gates as the table of `docs/datasets.md`."""
    marks = {"all": "", "labels": " ¹", "classification": " ²"}
    lines = ["| gate | reads | bar | where it comes from | when it stops a build |", "|---|---|---|---|---|"]
    lines += [f"| `{g.name}`{marks[g.tasks]} | {g.reads} | {g.bar} | {g.source} | {g.remedy} |" for g in GATES]
    return "\n".join(lines)


def label_counts(dataset: Dataset, spec: TaskSpec) -> dict[str, int]:
    """Return the number of training examples per label, one with several counting for each; empty without labels."""
    if not spec.labels:
        return {}
    found = answer_form(spec).counts_by_label(Counter(example.answer for example in dataset.train))
    return {label: round(count) for label, count in sorted(found.items())}
