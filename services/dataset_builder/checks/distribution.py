"""How the labels of a training set differ from those of production, as audits know it. Pure.

An audit is a question about a prediction that chance chose, the probability fixed beforehand. Weighted by one over it
(Hájek's estimator), audits say how frequent each label really is, which production's own answers do not. Only audits
that were answered are known here: kinds of requests whose audits stay open count too little.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from schemas.datasets import Example, Origin
from schemas.labels import Purpose
from services.dataset_builder.building.votes import OLDEST_FIRST, Vote

MIN_AUDITS = 10
"""A class with fewer is not compared by itself: all such classes are one."""
MIN_COMPARED = 30
"""Fewer audits compare nothing: of sets like production one in ten would be over an index of 0.25 by chance."""
REST = "(all other labels)"


@dataclass(frozen=True)
class Audits:
    """The answered audits: of each label the sum of weights 1/π, and the number. A disputed audit counts in parts."""

    weights: Mapping[str, float]
    counts: Mapping[str, float]
    total: int
    effective: float

    def classes(self, trained: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the classes that can be compared: each label with enough audits, and all others together.

        `trained`: the labels of the training rows, also those in no audit. Empty where no label has enough audits.
        """
        frequent = sorted(label for label, count in self.counts.items() if count >= MIN_AUDITS)
        rest = tuple(sorted({*self.counts, *trained} - set(frequent)))
        if not frequent:
            return {}
        return {**{label: (label,) for label in frequent}, **({REST: rest} if rest else {})}

    def share(self, labels: Iterable[str]) -> float:
        """Return the share of production's requests whose right answer is one of the labels."""
        return sum(self.weights.get(label, 0.0) for label in labels) / sum(self.weights.values())


@dataclass(frozen=True)
class ClassShare:
    """One class: its number of audits, its share of production, and of the training rows after weights."""

    label: str
    audits: float
    production: float
    training: float


@dataclass(frozen=True)
class Distribution:
    """The labels of the training rows against production's. The numbers are None where too little is audited.

    `audits` have a label of today; `production`: the share of each answer in production, by audits.

    `psi` is corrected for its bias, on effective sample sizes (Kish 1965), so it may be slightly negative.
    """

    audits: int = 0
    production: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[ClassShare, ...] = ()
    psi: float | None = None


def audited(votes: Iterable[Vote]) -> Audits:
    """Return what audits say: of each reviewer the last label, and several labels of one prediction share its weight.

    What reviewers said of an audited prediction when they were asked again, because its label looked wrong or they
    disagreed, counts as well: that it was audited is chance all the same.
    """
    ordered = sorted(votes, key=OLDEST_FIRST)
    weight_of = {v.prediction_id: 1.0 / v.inclusion_probability for v in ordered if v.purpose is Purpose.AUDIT}
    labels_of: dict[str, dict[str, str]] = {name: {} for name in weight_of}
    for vote in ordered:
        if vote.prediction_id in labels_of and vote.origin is not Origin.USER:
            labels_of[vote.prediction_id][vote.voter] = vote.label
    weights, counts = defaultdict[str, float](float), defaultdict[str, float](float)
    for prediction_id, by_reviewer in sorted(labels_of.items()):
        for label in by_reviewer.values():
            weights[label] += weight_of[prediction_id] / len(by_reviewer)
            counts[label] += 1.0 / len(by_reviewer)
    return Audits(dict(weights), dict(counts), len(weight_of), _effective(weight_of.values()))


def measure_distribution(train: Sequence[Example], audits: Audits) -> Distribution:
    """Compare the training rows, by their weights, with audited production."""
    weighted = weights_by_label(train)
    classes = audits.classes(weighted)
    if not weighted or not classes or audits.effective < MIN_COMPARED:
        return Distribution(audits.total)
    total = sum(weighted.values())
    shares = tuple(
        ClassShare(
            label=name,
            audits=round(sum(audits.counts.get(label, 0.0) for label in labels), 1),
            production=round(audits.share(labels), 4),
            training=round(sum(weighted.get(label, 0.0) for label in labels) / total, 4),
        )
        for name, labels in classes.items()
    )
    rows = _effective(row.weight for row in train)
    production = {share.label: share.production * audits.effective for share in shares}
    training = {share.label: share.training * rows for share in shares}
    return Distribution(
        audits=audits.total,
        production={label: audits.share([label]) for label in audits.weights},
        classes=shares,
        psi=round(corrected_psi(production, training), 4),
    )


def weights_by_label(rows: Iterable[Example]) -> dict[str, float]:
    """Return the sum of the rows' weights by their answer."""
    weighted = defaultdict[str, float](float)
    for row in rows:
        weighted[row.answer] += row.weight
    return dict(weighted)


def corrected_psi(expected: Mapping[str, float], actual: Mapping[str, float]) -> float:
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
        p = (expected.get(name, 0.0) + 0.5) / (n + 0.5 * size)
        q = (actual.get(name, 0.0) + 0.5) / (m + 0.5 * size)
        total += (p - q) * math.log(p / q)
    return total - (size - 1) * (1 / n + 1 / m)


def _effective(weights: Iterable[float]) -> float:
    """Return the number of rows of equal weight that say as much: (Σw)² / Σw²."""
    listed = list(weights)
    squares = sum(weight * weight for weight in listed)
    return sum(listed) ** 2 / squares if squares else 0.0
