"""The gates of labels: which there are, whether people agree, which look wrong, how frequent each is. Pure."""

from __future__ import annotations

import math
from collections import Counter

from schemas.base import Gate
from services.dataset_builder.checks.agreement import Agreement
from services.dataset_builder.checks.distribution import MIN_AUDITS, MIN_COMPARED, corrected_psi, weights_by_label
from services.dataset_builder.checks.intervals import upper_bound
from services.dataset_builder.inspection.gate import MAX_DETAIL, DatasetGate, Inspection
from services.dataset_builder.inspection.row_gates import DEFAULT
from shared.answers import answer_form

_SHOWN = 3
_BEYOND_CHANCE = 3.0
"""Standard errors above chance that labels must be predicted: shuffled labels pass once in a thousand sets."""
_CLOSE = 0.1
"""Under it, by practice, a population stability index means no difference to speak of."""


class LabelsToLearn(DatasetGate):
    """A set that has only one label teaches to say it always. A rare label stops nothing: it is named and asked for."""

    name = "labels_to_learn"
    title = "Labels with enough examples"
    tasks = "labels"
    reads = f"labels with `min_examples_per_label` ({DEFAULT.min_examples_per_label}) training rows"
    bar = "≥ 2"
    source = "one label alone teaches to say it always"
    remedy = "Have answers of more labels corrected, or lower dataset.min_examples_per_label."

    def measure(self, inspected: Inspection) -> Gate:
        spec, counts = inspected.spec, Counter[str]()
        minimum, form = spec.dataset.min_examples_per_label, answer_form(spec)
        for answer, count in Counter([example.answer for example in inspected.dataset.train]).items():
            counts.update(dict.fromkeys(form.labels(answer) or (), count))
        enough = sum(1 for label in spec.labels if counts[label] >= minimum)
        few = [f"{label} {counts[label]}" for label in spec.labels if 0 < counts[label] < minimum]
        missing = [label for label in spec.labels if not counts[label]]
        parts = [f"collect more of: {', '.join(few)}"] if few else []
        parts += [f"none of: {', '.join(missing)}"] if missing else []
        required = f">= 2 labels with >= {minimum} training examples"
        return self.gate(enough >= 2, enough, required, "; ".join(parts))


class ReviewersAgree(DatasetGate):
    """Stops when even the upper bound of agreement is under the limit: chance alone stops 5 % of sets that meet it."""

    name = "agreement"
    title = "Reviewers agree"
    tasks = "labels"
    reads = (
        "how often two people agree, exact upper 95 % bound; unknown under "
        f"`min_overlaps` ({DEFAULT.min_overlaps}) questions"
    )
    bar = f"≥ `min_agreement` ({DEFAULT.min_agreement})"
    source = "practice: on what people disagree a model is right no more often than they agree"
    remedy = (
        "Say in the labels' names or the reviewers' instructions where the named labels differ, or merge them. Then "
        "have new questions answered by two people. dataset.min_agreement lowers the bar."
    )
    to_know = "Let a second person answer questions in the console, or raise failures.overlap_share."

    def measure(self, inspected: Inspection) -> Gate:
        agreement, rules = inspected.measures.agreement, inspected.spec.dataset
        minimum, fewest = rules.min_agreement, rules.min_overlaps
        required = f"one-sided 95 % upper bound >= {minimum}"
        n = agreement.overlaps if agreement else 0
        if agreement is None or n < fewest:
            so_far = f" (so far {agreement.agreement.value:.0%} agree)" if agreement else ""
            return self.unknown(
                required,
                f"unknown: {n} questions were answered by two reviewers{so_far}; {fewest - n} more are needed: a "
                "second reviewer, or a higher failures.overlap_share",
            )
        passed = agreement.upper_bound >= minimum
        detail = f"{agreement.agreement.value:.0%} of {_measured(agreement)}"
        return self.gate(
            passed, agreement.upper_bound, required, detail if passed else f"{detail}; {_who(agreement, minimum)}"
        )


class FewWrongLabels(DatasetGate):
    """Stops where surely more labels look wrong than allowed: chance alone stops 5 % of sets at the limit."""

    name = "label_noise"
    title = "Few labels look wrong"
    tasks = "classification"
    reads = "share of labels that look wrong, exact lower 95 % bound; unknown under 50 rows"
    bar = f"≤ `max_noise_share` ({DEFAULT.max_noise_share})"
    source = "measured on Banking77: 15 % wrong labels cost two points of accuracy"
    remedy = (
        "Answer the questions about suspicious labels in the console, and find out who gave them; "
        "dataset.max_noise_share allows more."
    )

    def measure(self, inspected: Inspection) -> Gate:
        noise, maximum = inspected.measures.noise, inspected.spec.dataset.max_noise_share
        required = f"one-sided 95 % lower bound <= {maximum} of labels that look wrong"
        if not noise.judged:
            return self.unknown(required, noise.unknown)
        share = noise.issues / noise.judged
        lowest = 1.0 - upper_bound(noise.judged - noise.issues, noise.judged)
        detail = f"about {share:.0%} of the labels look wrong; {noise.description}"
        return self.gate(lowest <= maximum, share, required, detail)


class LabelsPredictable(DatasetGate):
    """Stops labels that have nothing to do with the texts: shuffled ones, or those of other rows.

    Where any share of wrong labels is allowed (`max_noise_share: 1`) it stops nothing: a label may well depend on
    something that a sentence encoder does not see.
    """

    name = "labels_predictable"
    title = "Labels follow from the texts"
    tasks = "classification"
    reads = "mean recall of a classifier on texts it has not seen"
    bar = "three standard errors above chance"
    source = "shuffled labels pass once in a thousand sets"
    remedy = "Check that labels were not mixed up on their way here. dataset.max_noise_share of 1 turns the gate off."

    def measure(self, inspected: Inspection) -> Gate:
        noise = inspected.measures.noise
        accuracy = noise.balanced_accuracy
        if accuracy is None:
            return self.unknown("beyond chance", noise.unknown)
        labels = len(noise.recall)
        chance = 1.0 / labels
        spread = math.sqrt(sum(chance * (1.0 - chance) / n for _, n in noise.recall.values())) / labels
        minimum = round(min(chance + _BEYOND_CHANCE * spread, 1.0), 4)
        return self.gate(
            accuracy > minimum or inspected.spec.dataset.max_noise_share >= 1.0,
            accuracy,
            f"> {minimum:g} mean recall of the labels, which is beyond chance ({chance:.3g})",
            f"a model that has not seen a text tells its label in {accuracy:.0%} of cases",
        )


class LabelDistribution(DatasetGate):
    """Compares with audits. Production's own answers are reported only: they are what the labels correct."""

    name = "label_distribution"
    title = "Labels distributed as in production"
    tasks = "labels"
    reads = (
        "weighted training labels against audited production: population stability index without its bias; unknown "
        f"under {MIN_COMPARED} audits, or until a label has {MIN_AUDITS}"
    )
    bar = f"≤ `max_label_psi` ({DEFAULT.max_label_psi})"
    source = "practice: over 0.25 is another distribution"
    remedy = (
        "Have the labels under “collect next” corrected, or raise dataset.balance.max_class_weight or "
        "dataset.max_label_psi."
    )
    to_know = "Have the questions of the audit answered in the console, or raise failures.audit_share."

    def measure(self, inspected: Inspection) -> Gate:
        found, train = inspected.measures.distribution, inspected.dataset.train
        maximum, traffic = inspected.spec.dataset.max_label_psi, inspected.traffic
        required = f"PSI against audited production <= {maximum}"
        answers = ""
        if traffic:
            index = corrected_psi(traffic, weights_by_label(train))
            answers = f"PSI against production's answers, not a gate: {index:.2f}"
        if found.psi is None:
            detail = f"unknown: {found.audits} audits; {MIN_COMPARED} are needed, {MIN_AUDITS} of them of one label"
            return self.unknown(required, "; ".join(filter(None, (detail, answers))))
        verdict = "close" if found.psi < _CLOSE else "differs" if found.psi <= maximum else "differs too much"
        detail = "; ".join(filter(None, (f"{verdict}, {found.audits} audits", answers)))
        return self.gate(found.psi <= maximum, found.psi, required, detail)


def _measured(agreement: Agreement) -> str:
    if agreement.overlaps == agreement.answered:
        return f"{agreement.overlaps} questions"
    return f"the newest {agreement.overlaps} questions, of {agreement.answered}"


def _who(agreement: Agreement, minimum: float) -> str:
    """Name the labels and the people that disagree: those surely under the limit, else the least agreeing."""
    labels = [c for c in agreement.classes if c.agreement.high < minimum] or agreement.classes[:_SHOWN]
    people = [a for a in agreement.annotators if a.agreement.high < minimum] or agreement.annotators[:_SHOWN]
    confused = ", ".join(f"{first} or {second} {count}" for first, second, count in agreement.confusions[:_SHOWN])
    return (
        f"labels: {', '.join(f'{c.name} {c.agreement.value:.0%}' for c in labels[:10])}; confused: {confused}; "
        f"reviewers: {', '.join(f'{a.name} {a.agreement.value:.0%}' for a in people[:10])}"
    )[: MAX_DETAIL // 2]
