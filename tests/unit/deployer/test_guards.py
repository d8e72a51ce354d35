"""The canary's guards against exact values: rational numbers, and all paths of a healthy canary at once."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from services.deployer.statistics.guards import LIMIT, SLOW_SHARE, Guard, excess, percentile_rank, together


def exact(events: int, total: int, null: Fraction) -> Fraction:
    """The mixture's likelihood ratio in rational numbers: alternatives at equal distances between `null` and 1."""
    ratios = []
    for step in range(20):
        p = null + (1 - null) * Fraction(2 * step + 1, 40)
        ratios.append((p / null) ** events * ((1 - p) / (1 - null)) ** (total - events))
    return sum(ratios, Fraction()) / 20


@pytest.mark.parametrize(("events", "total"), [(0, 0), (0, 1), (1, 1), (3, 4), (5, 60), (12, 90), (40, 700)])
def test_the_evidence_is_the_mixtures_likelihood_ratio(events: int, total: int) -> None:
    assert excess(events, total, SLOW_SHARE) == pytest.approx(float(exact(events, total, Fraction(1, 20))), rel=1e-9)


def test_the_evidences_expectation_under_the_null_is_one_and_less_below_it() -> None:
    for rate, expected in ((Fraction(1, 20), 1.0), (Fraction(1, 25), None)):
        n = 30
        mean = sum(comb(n, k) * rate**k * (1 - rate) ** (n - k) * exact(k, n, Fraction(1, 20)) for k in range(n + 1))
        assert float(mean) == 1.0 if expected else float(mean) < 1.0


def reached(limit: float, null: float, rate: float, total: int) -> float:
    """The exact probability that the evidence reaches `limit` within `total` events of this rate: all paths at once."""
    alive, stopped = np.array([1.0]), 0.0
    for n in range(1, total + 1):
        alive = np.append(alive * (1 - rate), 0.0) + np.append(0.0, alive * rate)
        over = np.array([excess(k, n, null) >= limit for k in range(n + 1)])
        stopped += alive[over].sum()
        alive[over] = 0.0
    return float(stopped)


def test_a_guard_alone_ends_a_healthy_canary_at_most_with_its_share() -> None:
    """Of .05, one fifth. A limit of 20 for each guard ends more."""
    alone = (LIMIT - 0.2 - 3 * 0.2) / 0.2  # The other three stand at 1.
    assert reached(alone, SLOW_SHARE, SLOW_SHARE, 400) <= 0.01
    assert reached(20.0, SLOW_SHARE, SLOW_SHARE, 400) > 0.015


def test_a_canary_that_is_slow_for_one_in_five_is_ended_within_a_hundred_subjects() -> None:
    assert reached(100.0, SLOW_SHARE, 0.2, 100) >= 0.9


def test_all_guards_together_are_a_mean() -> None:
    healthy = dict.fromkeys(Guard, 1.0)
    assert together(healthy) == pytest.approx(1.0)
    assert together({}) == 1.0
    assert together({**healthy, Guard.LATENCY: 96.0}) == pytest.approx(LIMIT)
    before = [guard for guard in Guard if guard is not Guard.LABELS]
    assert together(dict.fromkeys(before, 24.75)) == pytest.approx(LIMIT), "a share is left to labels after a promotion"
    assert together(dict.fromkeys(Guard, 20.0)) == pytest.approx(LIMIT)
    assert together(dict.fromkeys(before, 0.0)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("measured", "rank"), [(0, None), (89, None), (90, 90), (200, 197), (500, 487), (2_000, 1_923)]
)
def test_the_percentile_is_an_upper_limit_and_needs_ninety_values(measured: int, rank: int | None) -> None:
    assert percentile_rank(measured) == rank
    if rank is not None:
        p = Fraction(19, 20)
        tails = [
            sum(comb(measured, k) * p**k * (1 - p) ** (measured - k) for k in range(first, measured + 1))
            for first in (rank, rank - 1)
        ]
        assert tails[0] <= Fraction(1, 100) < tails[1]
