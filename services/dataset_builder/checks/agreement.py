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

from schemas.labels import Purpose
from services.dataset_builder.building.votes import OLDEST_FIRST, Vote
from services.dataset_builder.checks.intervals import Estimate, proportion, upper_bound

WINDOW = 200
"""How many of the newest overlaps are measured, or `dataset.min_overlaps` if that is more.

At a limit of .9 the gate then stops 99 % of the sets of people who agree on .8, and 69 % at .85; of a hundred it stops
87 and 43 %. With more, what is mended would show later.
"""
_CHOSEN_BY_ANSWER = (Purpose.TIE_BREAK, Purpose.SUSPICIOUS_LABEL)
_SHOWN_CONFUSIONS = 20


@dataclass(frozen=True)
class Overlap:
    """One question with two answers, neither given in sight of the other. Sorted by annotator."""

    annotators: tuple[str, str]
    labels: tuple[str, str]

    @property
    def agrees(self) -> bool:
        return self.labels[0] == self.labels[1]


@dataclass(frozen=True)
class AgreementAbout:
    """Agreement about one label against all others, or with one annotator; `name` is whose.

    `agreement`: if one annotator gives the label, the probability that the other does (specific agreement, Fleiss
    1981); or how often whoever answered the same question agrees with the annotator. `overlaps`: questions to which
    at least one gave the label, or that the annotator answered.
    """

    name: str
    overlaps: int
    agreement: Estimate


@dataclass(frozen=True)
class Agreement:
    """The agreement of annotators. `upper_bound`: one-sided, 95 %, exact. The least agreement comes first.

    `overlaps` are the newest of the `answered` ones: all numbers are of them alone.
    `confusions`: two labels that were given to the same question, and how often, the commonest first.
    `kappa` is Fleiss' (1971), the agreement beyond chance; None where all labels are the same.
    """

    overlaps: int
    answered: int
    agreement: Estimate
    upper_bound: float
    annotators: tuple[AgreementAbout, ...]
    kappa: float | None
    classes: tuple[AgreementAbout, ...]
    confusions: tuple[tuple[str, str, int], ...]


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


def measure_agreement(overlaps: Sequence[Overlap], newest: int | None = None) -> Agreement | None:
    """Measure agreement; None without any overlap.

    `overlaps`: oldest first. `newest`: of how many of the last ones; None: of all.
    """
    if not overlaps:
        return None
    answered = len(overlaps)
    overlaps = overlaps if newest is None else overlaps[-newest:]
    agreed, n = sum(overlap.agrees for overlap in overlaps), len(overlaps)
    confused = Counter(tuple(sorted(overlap.labels)) for overlap in overlaps if not overlap.agrees)
    ranked = sorted(confused.items(), key=lambda item: (-item[1], item[0]))
    return Agreement(
        overlaps=n,
        answered=answered,
        agreement=proportion(agreed, n),
        upper_bound=round(upper_bound(agreed, n), 4),
        annotators=_annotators(overlaps),
        kappa=_kappa(overlaps),
        classes=_classes(overlaps),
        confusions=tuple((a, b, count) for (a, b), count in ranked[:_SHOWN_CONFUSIONS]),
    )


def _annotators(overlaps: Sequence[Overlap]) -> tuple[AgreementAbout, ...]:
    answered, agreed = Counter[str](), Counter[str]()
    for overlap in overlaps:
        for annotator in overlap.annotators:
            answered[annotator] += 1
            agreed[annotator] += overlap.agrees
    measured = (AgreementAbout(who, n, proportion(agreed[who], n)) for who, n in answered.items())
    return tuple(sorted(measured, key=lambda a: (a.agreement.value, a.name)))


def _kappa(overlaps: Sequence[Overlap]) -> float | None:
    given = Counter(label for overlap in overlaps for label in overlap.labels)
    if len(given) == 1:
        return None
    agreed = sum(overlap.agrees for overlap in overlaps) / len(overlaps)
    chance = sum((count / given.total()) ** 2 for count in given.values())
    return round((agreed - chance) / (1.0 - chance), 4)


def _classes(overlaps: Sequence[Overlap]) -> tuple[AgreementAbout, ...]:
    either, both = Counter[str](), Counter[str]()
    for overlap in overlaps:
        either.update(set(overlap.labels))
        both[overlap.labels[0]] += overlap.agrees
    measured = (AgreementAbout(label, n, _specific(proportion(both[label], n))) for label, n in either.items())
    return tuple(sorted(measured, key=lambda c: (c.agreement.value, c.name)))


def _specific(together: Estimate) -> Estimate:
    """Of questions to which either gave the label, both gave it to a share p: specific agreement is 2p / (1 + p)."""
    value, low, high = (round(2.0 * p / (1.0 + p), 4) for p in (together.value, together.low, together.high))
    return Estimate(value, low, high)
