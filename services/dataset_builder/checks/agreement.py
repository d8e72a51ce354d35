"""How far reviewers agree, who does not, and about which labels. Pure.

Only questions that several people were to answer from the start count, and of each the first two answers. Third
opinions are asked for because two people disagree, and questions about a suspicious label because it looks wrong: both
would make agreement look worse than it is. First answers stand, so the newest questions are measured: what a team has
mended shows in those that it answers afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.labels import Purpose
from services.dataset_builder.building.votes import OLDEST_FIRST, Vote
from services.dataset_builder.checks.intervals import Estimate, proportion, upper_bound

WINDOW = 200
"""How many of the newest overlaps are measured, or `dataset.min_overlaps` if that is more.

At a limit of .9 the gate then stops 99 % of the sets of people who agree on .8, and 69 % at .85; of a hundred it stops
87 and 43 %. With more, what is mended would show later.
"""
_CHOSEN_BY_ANSWER = (Purpose.TIE_BREAK, Purpose.SUSPICIOUS_LABEL)
_RESAMPLES = 500
_SHOWN_CONFUSIONS = 20

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Overlap:
    """One question with two answers, neither given in sight of the other. Sorted by annotator."""

    annotators: tuple[str, str]
    labels: tuple[str, str]

    @property
    def agrees(self) -> bool:
        return self.labels[0] == self.labels[1]


@dataclass(frozen=True)
class ClassAgreement:
    """Agreement about one label against all others.

    `agreement`: if one annotator gives the label, the probability that the other does (specific agreement, Fleiss
    1981). `overlaps`: questions to which at least one gave it. `kappa` and `alpha` are None where nothing varies.
    """

    label: str
    overlaps: int
    agreement: Estimate
    kappa: Estimate | None
    alpha: Estimate | None


@dataclass(frozen=True)
class AnnotatorAgreement:
    """How often an annotator agrees with whoever answered the same question."""

    annotator: str
    overlaps: int
    agreement: Estimate


@dataclass(frozen=True)
class Confusion:
    """Two labels that were given to the same question, and how often."""

    labels: tuple[str, str]
    count: int


@dataclass(frozen=True)
class Agreement:
    """The agreement of annotators. `upper_bound`: one-sided, 95 %, exact. The least agreement comes first.

    `overlaps` are the newest of the `answered` ones: all numbers are of them alone.
    `kappa` is Cohen's where two people gave all the answers, Fleiss' where there were more. Intervals of kappa and of
    Krippendorff's alpha (nominal) are bootstrapped by question.
    """

    overlaps: int
    answered: int
    agreement: Estimate
    upper_bound: float
    annotators: tuple[AnnotatorAgreement, ...]
    kappa: Estimate | None
    alpha: Estimate | None
    classes: tuple[ClassAgreement, ...]
    confusions: tuple[Confusion, ...]


def blind_overlaps(votes: Iterable[Vote]) -> list[Overlap]:
    """Return the questions that two people answered, oldest second answer first: of each person the first answer."""
    first: dict[str, dict[str, str]] = {}
    overlaps = []
    for vote in sorted(votes, key=OLDEST_FIRST):
        if vote.request_id is None or vote.purpose in _CHOSEN_BY_ANSWER:
            continue
        answers = first.setdefault(vote.request_id, {})
        if vote.voter in answers or len(answers) == 2:
            continue
        answers[vote.voter] = vote.label
        if len(answers) == 2:
            (ann, left), (ben, right) = sorted(answers.items())
            overlaps.append(Overlap((ann, ben), (left, right)))
    return overlaps


def measure_agreement(overlaps: Sequence[Overlap], seed: int, newest: int | None = None) -> Agreement | None:
    """Measure agreement; None without any overlap. The same overlaps and seed give the same numbers.

    `overlaps`: oldest first. `newest`: of how many of the last ones; None: of all.
    """
    if not overlaps:
        return None
    answered = len(overlaps)
    overlaps = overlaps if newest is None else overlaps[-newest:]
    agreed, n = sum(overlap.agrees for overlap in overlaps), len(overlaps)
    annotators = _annotators(overlaps)
    kappa, alpha, classes = _corrected_for_chance(overlaps, two_people=len(annotators) == 2, seed=seed)
    confused = Counter(tuple(sorted(overlap.labels)) for overlap in overlaps if not overlap.agrees)
    ranked = sorted(confused.items(), key=lambda item: (-item[1], item[0]))
    return Agreement(
        overlaps=n,
        answered=answered,
        agreement=proportion(agreed, n),
        upper_bound=round(upper_bound(agreed, n), 4),
        annotators=annotators,
        kappa=kappa,
        alpha=alpha,
        classes=classes,
        confusions=tuple(Confusion((a, b), count) for (a, b), count in ranked[:_SHOWN_CONFUSIONS]),
    )


def _annotators(overlaps: Sequence[Overlap]) -> tuple[AnnotatorAgreement, ...]:
    answered, agreed = Counter[str](), Counter[str]()
    for overlap in overlaps:
        for annotator in overlap.annotators:
            answered[annotator] += 1
            agreed[annotator] += overlap.agrees
    measured = (AnnotatorAgreement(who, n, proportion(agreed[who], n)) for who, n in answered.items())
    return tuple(sorted(measured, key=lambda a: (a.agreement.value, a.annotator)))


def _corrected_for_chance(
    overlaps: Sequence[Overlap], *, two_people: bool, seed: int
) -> tuple[Estimate | None, Estimate | None, tuple[ClassAgreement, ...]]:
    """Return kappa, alpha and the measures of each class, from the counts and from resampled counts.

    The overlaps become a table of pairs of labels; resampling questions is then one multinomial draw a table.
    """
    labels = sorted({label for overlap in overlaps for label in overlap.labels})
    pairs = Counter(overlap.labels for overlap in overlaps)
    cells = sorted(pairs)
    observed = np.array([pairs[cell] for cell in cells])
    n = len(overlaps)
    drawn = np.random.default_rng(seed).multinomial(n, observed / n, size=_RESAMPLES)
    tables = np.vstack([observed, drawn]).astype(np.float64)
    first, second, both = (np.zeros((len(tables), len(labels))) for _ in range(3))
    for column, (left, right) in enumerate(cells):
        first[:, labels.index(left)] += tables[:, column]
        second[:, labels.index(right)] += tables[:, column]
        if left == right:
            both[:, labels.index(left)] += tables[:, column]
    chance = _chance(first, second, n, two_people).sum(axis=1)
    kappa = _estimate(_beyond(both.sum(axis=1) / n, chance))
    alpha = _estimate(_beyond(both.sum(axis=1) / n, _chance_in_pool(first + second, n).sum(axis=1)))
    agrees = 1.0 - (first + second - 2.0 * both) / n  # About each label against all others.
    rest = _chance(n - first, n - second, n, two_people)
    kappas = _beyond(agrees, _chance(first, second, n, two_people) + rest)
    alphas = _beyond(agrees, _chance_in_pool(first + second, n) + _chance_in_pool(2.0 * n - first - second, n))
    classes = []
    for column, label in enumerate(labels):
        together = int(both[0, column])
        either = int(first[0, column] + second[0, column]) - together
        specific = _specific(proportion(together, either))
        classes.append(
            ClassAgreement(label, either, specific, _estimate(kappas[:, column]), _estimate(alphas[:, column]))
        )
    return kappa, alpha, tuple(sorted(classes, key=lambda c: (c.agreement.value, c.label)))


def _chance(first: Counts, second: Counts, n: int, two_people: bool) -> Counts:
    """The expected share of agreement on each label: Cohen's for two people, Fleiss' for several."""
    return first * second / n**2 if two_people else ((first + second) / (2.0 * n)) ** 2


def _chance_in_pool(given: Counts, n: int) -> Counts:
    """Krippendorff's: two labels drawn from all that were given, without putting the first one back."""
    return given * (given - 1.0) / (2.0 * n * (2.0 * n - 1.0))


def _beyond(observed: Counts, chance: Counts) -> Counts:
    """The agreement beyond chance, as a share of what is possible; not a number where all labels are the same."""
    possible = 1.0 - chance
    return np.divide(observed - chance, possible, out=np.full_like(observed, np.nan), where=possible > 1e-12)


def _estimate(values: Counts) -> Estimate | None:
    """The first value is the estimate, the others its bootstrap distribution."""
    if np.isnan(values[0]):
        return None
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return Estimate(round(float(values[0]), 4), round(float(low), 4), round(float(high), 4))


def _specific(together: Estimate) -> Estimate:
    """Of questions to which either gave the label, both gave it to a share p: specific agreement is 2p / (1 + p)."""
    value, low, high = (round(2.0 * p / (1.0 + p), 4) for p in (together.value, together.low, together.high))
    return Estimate(value, low, high)
