"""The gates that a dataset must pass before training, and how its labels differ from live traffic. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from schemas.base import Gate
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.domain import DUPLICATE, Dataset
from shared.conversation import NEVER_TRAINED


def evaluate_gates(dataset: Dataset, spec: TaskSpec, traffic: Mapping[str, int]) -> tuple[Gate, ...]:
    """Return all gates, passed or not. `traffic`: how often production gave each answer in the last hours."""
    gates = [_min_examples(dataset, spec), _min_eval(dataset), _max_rejected(dataset, spec)]
    if spec.kind is TaskKind.CLASSIFICATION:
        gates.append(_min_per_label(dataset, spec))
        gates.append(_label_distribution(dataset, traffic))
    return tuple(gates)


def describe_failed_gates(gates: tuple[Gate, ...]) -> str:
    """Return the gates that failed, with their numbers."""
    failures = []
    for gate in gates:
        if not gate.passed:
            measured = f"{round(gate.measured, 3):g}" if gate.measured is not None else "unknown"
            detail = f" ({gate.detail})" if gate.detail else ""
            failures.append(f"{gate.name} is {measured}, required {gate.required}{detail}")
    return "; ".join(failures)


def way_out(gates: tuple[Gate, ...], spec: TaskSpec) -> str:
    """Return what an operator does about the gates that failed."""
    advice = {
        "min_examples": "Have more answers corrected in the console, or lower dataset.min_examples.",
        "min_eval_examples": "Have more answers corrected in the console, or raise dataset.eval_share.",
        "max_rejected_share": "Look at the reasons: answer the open tie-breaks, or raise dataset.max_rejected_share.",
        "min_examples_per_label": "Have more answers of these labels corrected, or lower the setting of the same name.",
    }
    failed = " ".join(advice.get(g.name, f"Meet {g.name}: {g.required}.") for g in gates if not g.passed)
    return f"{failed} Then start a new cycle: ratchet cycle {spec.name}"


def label_counts(dataset: Dataset, spec: TaskSpec) -> dict[str, int]:
    """Return the number of training examples per label; empty for a generation task."""
    if spec.kind is not TaskKind.CLASSIFICATION:
        return {}
    return dict(sorted(Counter(example.answer for example in dataset.train).items()))


def corrected_psi(expected: Mapping[str, int], actual: Mapping[str, int]) -> float:
    """Return the population stability index of two label counts, less its bias (K-1)(1/n + 1/m).

    Without the correction, many classes and few rows look like drift on identical data. Under 0.1: no difference to
    speak of; over 0.25: a different distribution. Half a count is added to each class, so that an empty one is finite.
    """
    classes = sorted(set(expected) | set(actual))
    n, m = sum(expected.values()), sum(actual.values())
    if not n or not m:
        return 0.0
    size = len(classes)
    total = 0.0
    for name in classes:
        p = (expected.get(name, 0) + 0.5) / (n + 0.5 * size)
        q = (actual.get(name, 0) + 0.5) / (m + 0.5 * size)
        total += (p - q) * math.log(p / q)
    return total - (size - 1) * (1 / n + 1 / m)


def _min_examples(dataset: Dataset, spec: TaskSpec) -> Gate:
    count, minimum = len(dataset.train), spec.dataset.min_examples
    return Gate(
        name="min_examples", passed=count >= minimum, measured=count, required=f">= {minimum} training examples"
    )


def _min_eval(dataset: Dataset) -> Gate:
    count = len(dataset.eval)
    return Gate(name="min_eval_examples", passed=count >= 1, measured=count, required=">= 1 held-out example")


def _max_rejected(dataset: Dataset, spec: TaskSpec) -> Gate:
    """What is no defect of the data does not count: many people ask the same, and some conversations have pictures."""
    no_defects = {DUPLICATE, *NEVER_TRAINED}
    bad = sum(1 for example in dataset.rejected if example.reason not in no_defects)
    total = bad + len(dataset.train) + len(dataset.eval)
    share = bad / total if total else 0.0
    reasons = ", ".join(f"{reason} {count}" for reason, count in dataset.rejected_by_reason().items())
    maximum = spec.dataset.max_rejected_share
    return Gate(
        name="max_rejected_share", passed=share <= maximum, measured=share, required=f"<= {maximum}", detail=reasons
    )


def _min_per_label(dataset: Dataset, spec: TaskSpec) -> Gate:
    """Labels that nobody gave are listed, but fail nothing: a rare one may not come up for weeks."""
    minimum = spec.dataset.min_examples_per_label
    counts = Counter(example.answer for example in dataset.train)
    given = {example.answer for example in (*dataset.train, *dataset.eval)}
    few = [f"{label} {counts[label]}" for label in spec.labels if label in given and counts[label] < minimum]
    missing = [label for label in spec.labels if label not in given]
    parts = [f"too few: {', '.join(few)}"] if few else []
    parts += [f"never given: {', '.join(missing)}"] if missing else []
    return Gate(
        name="min_examples_per_label",
        passed=not few,
        measured=min((counts[label] for label in given), default=0),
        required=f">= {minimum} training examples of each label given",
        detail="; ".join(parts)[:2_000],
    )


def _label_distribution(dataset: Dataset, traffic: Mapping[str, int]) -> Gate:
    """Reported, never failed: suspects are not a sample of the traffic, and the labels correct its answers."""
    labels = Counter(example.answer for example in dataset.train)
    psi = corrected_psi(traffic, labels)
    if not traffic:
        detail = "no roll-up of production yet"
    else:
        detail = "close" if psi < 0.1 else "differs" if psi < 0.25 else "differs much"
    return Gate(
        name="label_distribution",
        passed=True,
        measured=round(psi, 4),
        required="report only: PSI of labels against production's answers",
        detail=detail,
    )
