"""The gates that a dataset must pass before training. Pure.

Each can fail, says what it measured, and has a way out. What too few data cannot tell passes with `measured=None`, and
its detail asks for what is missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from schemas.base import Gate
from schemas.tasks import TaskSpec
from services.dataset_builder.checks.agreement import Agreement
from services.dataset_builder.checks.distribution import MIN_AUDITS, Distribution, corrected_psi, weights_by_label
from services.dataset_builder.checks.intervals import upper_bound
from services.dataset_builder.checks.label_noise import LabelNoise
from services.dataset_builder.inspection import counts
from services.dataset_builder.pipeline import Build, Dataset
from shared.answers import answer_form

_ADVICE = {
    "min_examples": "Have more answers corrected in the console, or lower dataset.min_examples.",
    "min_eval_examples": "Have more answers corrected in the console, or raise dataset.eval_share; "
    "dataset.min_eval_examples lowers the bar. Of questions that are all nearly the same none is held out: have others "
    "corrected, or say by dataset.user_part what differs.",
    "max_rejected_share": "Look at the reasons: answer the open tie-breaks, or raise dataset.max_rejected_share.",
    "max_held_back_share": "Have a second person label the rows that are held back, or raise dataset.max_voter_shift.",
    "leakage": "Nothing to set: a row is where it must not be, which is a fault of the builder. Report it.",
    "labels_to_learn": "Have answers of more labels corrected, or lower dataset.min_examples_per_label.",
    "max_label_share": "Have answers of other labels corrected, or raise dataset.max_label_share if production is so.",
    "agreement": "Talk to the named reviewers, and say in the labels' names or in the reviewers' instructions where "
    "these labels differ, or merge them. Have new questions answered by two people then, of which a higher "
    "failures.overlap_share asks more: the newest are measured, of each person the first answer, so answering old ones "
    "again changes nothing. dataset.min_agreement lowers the bar.",
    "label_noise": "Answer the questions about suspicious labels in the console, and find out who gave them; "
    "dataset.max_noise_share allows more.",
    "labels_predictable": "Check that labels were not mixed up on their way here. If they depend on what a sentence "
    "encoder cannot see, set dataset.max_noise_share to 1.",
    "label_distribution": "Train on what audits showed right, too (dataset.augmentation.audited), have the missing "
    "labels corrected, or raise dataset.balance.max_class_weight or dataset.max_label_psi.",
    "personal_data": "Look at what the redactor leaves in these rows: its patterns are the task's `redaction`.",
}
_TO_KNOW = {
    "agreement": "Let a second person answer questions in the console, or raise failures.overlap_share.",
    "label_distribution": "Have the questions of the audit answered in the console, or raise failures.audit_share.",
}
_SHOWN = 3
_BEYOND_CHANCE = 3.0
"""Standard errors above chance that labels must be predicted: shuffled labels pass once in a thousand sets."""


def evaluate_gates(build: Build, spec: TaskSpec, traffic: Mapping[str, int]) -> tuple[Gate, ...]:
    """Return all gates, passed or not. `traffic`: how often production gave each answer in the last hours."""
    dataset, measures = build.dataset, build.measures
    gates = [
        counts.min_examples(dataset, spec),
        counts.min_eval_examples(dataset, spec),
        counts.max_rejected_share(dataset, spec),
        counts.leakage(dataset, measures.frozen, measures.exclusions, spec.system_prompt),
    ]
    if spec.labels:
        gates += [
            counts.max_held_back_share(dataset, spec),
            counts.labels_to_learn(dataset, spec),
            counts.max_label_share(dataset, spec),
            _agreement(measures.agreement, spec),
            _label_distribution(measures.distribution, dataset, spec, traffic),
        ]
    if spec.choices:
        gates += [_label_noise(measures.noise, spec), _labels_predictable(measures.noise, spec)]
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


def advice(gate: Gate) -> str:
    """Return what an operator does about a gate that failed or could not be measured."""
    if gate.passed and gate.measured is None:
        return _TO_KNOW.get(gate.name, "Have more answers corrected in the console.")
    return _ADVICE.get(gate.name, f"Meet {gate.name}: {gate.required}.")


def way_out(gates: tuple[Gate, ...], spec: TaskSpec) -> str:
    """Return what an operator does about the gates that failed."""
    failed = " ".join(advice(gate) for gate in gates if not gate.passed)
    return f"{failed} Then start a new cycle: ratchet cycle {spec.name}"


def label_counts(dataset: Dataset, spec: TaskSpec) -> dict[str, int]:
    """Return the number of training examples per label, one with several counting for each; empty without labels."""
    if not spec.labels:
        return {}
    found = answer_form(spec).counts_by_label(Counter(example.answer for example in dataset.train))
    return {label: round(count) for label, count in sorted(found.items())}


def _agreement(agreement: Agreement | None, spec: TaskSpec) -> Gate:
    """Stops when even the upper bound of agreement is under the limit: chance alone stops 5 % of sets that meet it."""
    minimum, fewest = spec.dataset.min_agreement, spec.dataset.min_overlaps
    required = f"one-sided 95 % upper bound >= {minimum}"
    n = agreement.overlaps if agreement else 0
    if agreement is None or n < fewest:
        so_far = f" (so far {agreement.agreement.value:.0%} agree)" if agreement else ""
        detail = (
            f"unknown: {n} questions were answered by two reviewers{so_far}; {fewest - n} more are needed: a second "
            "reviewer, or a higher failures.overlap_share"
        )
        return Gate(name="agreement", passed=True, measured=None, required=required, detail=detail)
    passed = agreement.upper_bound >= minimum
    return Gate(
        name="agreement",
        passed=passed,
        measured=agreement.upper_bound,
        required=required,
        detail=f"{agreement.agreement.value:.0%} of {_measured(agreement)}"
        + ("" if passed else f"; {_who(agreement, minimum)}"),
    )


def _measured(agreement: Agreement) -> str:
    if agreement.overlaps == agreement.answered:
        return f"{agreement.overlaps} questions"
    return f"the newest {agreement.overlaps} questions, of {agreement.answered}"


def _who(agreement: Agreement, minimum: float) -> str:
    """Name the labels and the people that disagree: those surely under the limit, else the least agreeing."""
    labels = [c for c in agreement.classes if c.agreement.high < minimum] or agreement.classes[:_SHOWN]
    people = [a for a in agreement.annotators if a.agreement.high < minimum] or agreement.annotators[:_SHOWN]
    confused = ", ".join(f"{c.labels[0]} or {c.labels[1]} {c.count}" for c in agreement.confusions[:_SHOWN])
    return (
        f"labels: {', '.join(f'{c.label} {c.agreement.value:.0%}' for c in labels[:10])}; confused: {confused}; "
        f"reviewers: {', '.join(f'{a.annotator} {a.agreement.value:.0%}' for a in people[:10])}"
    )[: counts.MAX_DETAIL // 2]


def _label_noise(noise: LabelNoise, spec: TaskSpec) -> Gate:
    """Stops where surely more labels look wrong than allowed: chance alone stops 5 % of sets at the limit."""
    maximum = spec.dataset.max_noise_share
    required = f"one-sided 95 % lower bound <= {maximum} of labels that look wrong"
    if not noise.judged:
        return Gate(name="label_noise", passed=True, measured=None, required=required, detail=noise.unknown)
    share = noise.issues / noise.judged
    lowest = 1.0 - upper_bound(noise.judged - noise.issues, noise.judged)
    return Gate(
        name="label_noise",
        passed=lowest <= maximum,
        measured=round(share, 4),
        required=required,
        detail=f"about {share:.0%} of the labels look wrong; {noise.description}",
    )


def _labels_predictable(noise: LabelNoise, spec: TaskSpec) -> Gate:
    """Stops labels that have nothing to do with the texts: shuffled ones, or those of other rows.

    Where any share of wrong labels is allowed (`max_noise_share: 1`) it stops nothing: a label may well depend on
    something that a sentence encoder does not see.
    """
    accuracy = noise.balanced_accuracy
    if accuracy is None:
        required = "beyond chance"
        return Gate(name="labels_predictable", passed=True, measured=None, required=required, detail=noise.unknown)
    labels = len(noise.recall)
    chance = 1.0 / labels
    spread = math.sqrt(sum(chance * (1.0 - chance) / n for _, n in noise.recall.values())) / labels
    minimum = round(min(chance + _BEYOND_CHANCE * spread, 1.0), 4)
    return Gate(
        name="labels_predictable",
        passed=accuracy > minimum or spec.dataset.max_noise_share >= 1.0,
        measured=round(accuracy, 4),
        required=f"> {minimum:g} mean recall of the labels, which is beyond chance ({chance:.3g})",
        detail=f"a model that has not seen a text tells its label in {accuracy:.0%} of cases",
    )


def _label_distribution(measured: Distribution, dataset: Dataset, spec: TaskSpec, traffic: Mapping[str, int]) -> Gate:
    """Compares with audits. Production's own answers are reported only: they are what the labels correct."""
    maximum, weighted = spec.dataset.max_label_psi, weights_by_label(dataset.train)
    required = f"PSI against audited production <= {maximum}"
    answers = f"PSI against production's answers, not a gate: {corrected_psi(traffic, weighted):.2f}" if traffic else ""
    if measured.psi is None:
        detail = f"unknown: no label has {MIN_AUDITS} audits ({_answered(measured)}); let audits be answered"
        return Gate(
            name="label_distribution",
            passed=True,
            measured=None,
            required=required,
            detail="; ".join(filter(None, (detail, answers))),
        )
    passed = measured.psi <= maximum
    detail = "close" if measured.psi < 0.1 else "differs" if measured.psi < 0.25 else "differs much"
    lacking = "" if measured.psi < 0.1 else _collect(measured, len(dataset.train))
    return Gate(
        name="label_distribution",
        passed=passed,
        measured=measured.psi,
        required=required,
        detail="; ".join(filter(None, (f"{detail}, {_answered(measured)}", lacking, answers)))[: counts.MAX_DETAIL],
    )


def _answered(measured: Distribution) -> str:
    if not measured.asked or measured.asked < measured.answered:  # Not known.
        return f"{measured.audits} audits"
    return f"{measured.audits} audits; {measured.answered} of {measured.asked} answered"


def _collect(measured: Distribution, rows: int) -> str:
    """Say how many more rows of which labels would make them as frequent as in production."""
    gaps = {c.label: round((c.production - c.training) * rows) for c in measured.classes}
    most = sorted(((gap, label) for label, gap in gaps.items() if gap >= 1), key=lambda item: (-item[0], item[1]))
    return "collect " + ", ".join(f"{gap} more of {label}" for gap, label in most[:10]) if most else ""
