"""Agreement of reviewers: published examples, exact bounds, and which answers count."""

from __future__ import annotations

import random
from math import comb

import pytest

from schemas.labels import CorrectionSubmitted, Purpose
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.checks.agreement import Agreement, Overlap, blind_overlaps, measure_agreement
from services.dataset_builder.checks.intervals import proportion, upper_bound
from tests.unit.dataset_builder.voting import correction, overlaps_of


def measured(left: str, right: str) -> Agreement:
    overlaps = [Overlap(("ana", "ben"), pair) for pair in zip(left, right, strict=True)]
    agreement = measure_agreement(overlaps)
    assert agreement is not None
    return agreement


def both(number: int, labels: str) -> list[CorrectionSubmitted]:
    """Two people's answers to one question, later than those to questions with a smaller number."""
    people = zip(("ana", "ben"), labels, strict=True)
    return [correction(number, label, who, overlap=2, minute=number) for who, label in people]


def test_kappa_of_the_textbook_table() -> None:
    """Fifty questions: both yes 20, both no 15, different 15: 55 and 45 % of the labels, so 0.505 agree by chance."""
    found = measured("y" * 20 + "n" * 15 + "y" * 5 + "n" * 10, "y" * 20 + "n" * 15 + "n" * 5 + "y" * 10)
    assert found.kappa == round((0.7 - 0.505) / 0.495, 4)
    assert found.agreement.value == 0.7


def test_labels_and_people_that_disagree_are_named_first() -> None:
    votes = [*overlaps_of(90, agree=90), *votes_of(
        [
            correction(1_000 + n, "a" if who == "ana" else "b", who, overlap=2, minute=n)
            for n in range(20)
            for who in ("ana", "eve")
        ]
    )]  # fmt: skip
    agreement = measure_agreement(blind_overlaps(votes))
    assert agreement is not None
    assert [(a.name, a.agreement.value) for a in agreement.annotators] == [
        ("eve", 0.0), ("ana", round(90 / 110, 4)), ("ben", 1.0)
    ]  # fmt: skip
    assert (agreement.classes[-1].name, agreement.classes[-1].agreement.value) == ("c", 1.0)
    assert agreement.confusions == (("a", "b", 20),)
    of_a = next(c for c in agreement.classes if c.name == "a")
    assert (of_a.overlaps, of_a.agreement.value) == (50, round(2 * 30 / (30 + 50), 4))


def test_only_first_blind_answers_count() -> None:
    first = [correction(1, "a", "ana", overlap=2), correction(1, "b", "ben", overlap=2, minute=1)]
    changed = correction(1, "a", "ben", overlap=2, minute=2)
    third = correction(1, "a", "eve", overlap=2, minute=3)
    tie_break = correction(1, "a", "eve", purpose=Purpose.TIE_BREAK, request_id="t1", overlap=2, minute=4)
    alone = [correction(2, "a", "ana"), correction(2, "a", "ben", minute=1)]
    waiting = correction(3, "a", "ana", overlap=2)
    doubted = [correction(4, "a", who, purpose=Purpose.SUSPICIOUS_LABEL, overlap=2) for who in ("ana", "ben")]
    everything = [waiting, *alone, third, changed, *first, tie_break, *doubted]
    assert blind_overlaps(votes_of(everything)) == [Overlap(("ana", "ben"), ("a", "b"))]


def test_the_newest_overlaps_are_measured_so_what_was_mended_shows() -> None:
    """The second answer says how old an overlap is: a question may have waited long for it."""
    late = correction(0, "a", "ben", overlap=2, minute=9_000)
    early = [correction(0, "b", "ana", overlap=2), *(c for n in range(1, 150) for c in both(n, "ab"))]
    mended = [c for n in range(1_000, 1_199) for c in both(n, "aa")]
    overlaps = blind_overlaps(votes_of([late, *mended, *early]))
    assert [overlap.agrees for overlap in overlaps] == [False] * 149 + [True] * 199 + [False]
    agreement = measure_agreement(overlaps, newest=200)
    assert agreement is not None
    assert (agreement.overlaps, agreement.answered, agreement.agreement.value) == (200, 349, 0.995)
    assert [count for *_, count in agreement.confusions] == [1]
    everything = measure_agreement(overlaps)
    assert everything is not None
    assert (everything.overlaps, everything.answered) == (349, 349)


def test_the_order_of_arrival_changes_nothing() -> None:
    votes = list(overlaps_of(150, agree=120))
    shuffled = random.Random(1).sample(votes, len(votes))
    assert measure_agreement(blind_overlaps(votes)) == measure_agreement(blind_overlaps(shuffled))


def test_one_label_only_has_no_agreement_beyond_chance() -> None:
    agreement = measured("a" * 10, "a" * 10)
    assert (agreement.agreement.value, agreement.upper_bound) == (1.0, 1.0)
    assert agreement.kappa is None


def test_without_overlaps_nothing_is_measured() -> None:
    assert measure_agreement([]) is None


@pytest.mark.parametrize(("n", "truth"), [(100, 0.9), (100, 0.95), (237, 0.9), (1_000, 0.8)])
def test_the_upper_bound_is_under_the_truth_in_at_most_5_percent(n: int, truth: float) -> None:
    wrong = sum(comb(n, k) * truth**k * (1 - truth) ** (n - k) for k in range(n + 1) if upper_bound(k, n) < truth)
    assert wrong <= 0.05
    assert wrong > 0.02, "no looser than it must be"


def test_the_exact_interval_of_clopper_and_pearson() -> None:
    assert (proportion(4, 20).low, proportion(4, 20).high) == (0.0573, 0.4366)
    assert (proportion(0, 20).low, proportion(20, 20).high) == (0.0, 1.0)
