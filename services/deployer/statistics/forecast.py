"""How many labels a proof takes. Pure, exact by dynamic programming.

A label is a subject: each user (else session, else conversation) is asked about once a rollout, however many pairs it
has. So a forecast of 255 labels needs 255 subjects with a pair that differs; 500 users by Zipf's law give about 130 in
5,000 pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.stats import binom

from services.deployer.statistics.betting import Floats, wealths

HORIZON = 1_000
"""Decisive labels that a forecast looks ahead."""


@lru_cache(maxsize=512)
def labels_expected(wins: int, ties: int, losses: int, alpha: float) -> int | None:
    """Return the median number of further labels to wealth 1/alpha after these; 0: it is reached by these counts.

    The rate of wins is not taken as known: it is uniform before the first label (Bayes and Laplace), so the forecast is
    the median of the predictive distribution (Polya's urn) and does not promise what ten labels cannot know. None:
    unlikely within `HORIZON` decisive labels. It informs people; no decision reads it.
    """

    def rate(more_wins: Floats, more_losses: Floats) -> Floats:
        return np.asarray((1 + wins + more_wins) / (2 + wins + losses + more_wins + more_losses))

    decisive = (wins + losses + 1) / (wins + ties + losses + 1)
    return _median(_steps(wins, losses, alpha, rate), decisive)


def proof_distribution(win: float, alpha: float, horizon: int = HORIZON) -> Floats:
    """Return P(wealth first reaches 1/alpha at decisive label k), k = 0 … horizon, each won with probability `win`."""
    return _steps(0, 0, alpha, lambda wins, losses: np.full_like(wins, win), horizon)


def _steps(
    wins: int, losses: int, alpha: float, rate: Callable[[Floats, Floats], Floats], horizon: int = HORIZON
) -> Floats:
    """Return P(proof at the k-th further decisive label) by walking all counts of further wins at once."""
    needed = _wins_needed(wins, losses, 1 / alpha, horizon)
    reached, alive = np.zeros(horizon + 1), np.zeros(horizon + 2)
    alive[0] = 1.0  # By further wins.
    for label in range(horizon + 1):
        reached[label] = alive[needed[label] : label + 1].sum()
        alive[needed[label] :] = 0.0
        count = np.arange(label + 1, dtype=float)
        won = alive[: label + 1] * rate(count, label - count)
        alive[: label + 1] -= won
        alive[1 : label + 2] += won
    return reached


def _wins_needed(wins: int, losses: int, bar: float, horizon: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the fewest wins among the next k decisive labels that reach the bar; k + 1: none do. By bisection."""
    labels = np.arange(horizon + 1)
    low, high = np.zeros_like(labels), labels + 1
    while (low < high).any():
        middle = (low + high) // 2
        enough = wealths(wins + middle, 0, losses + labels - middle) >= bar
        low, high = np.where(enough | (low >= high), low, middle + 1), np.where(enough, middle, high)
    return high


def _median(reached: Floats, decisive: float) -> int | None:
    """Return the least number of labels, a share `decisive` of which decide, by which half of the proofs are there."""
    if reached.sum() < 0.5:
        return None
    steps = np.flatnonzero(reached)

    def proven(labels: int) -> float:
        return float(reached[steps] @ binom.sf(steps - 1, labels, decisive))

    low, high = 0, 1
    while proven(high) < 0.5:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proven(middle) >= 0.5 else (middle, high)
    return 0 if proven(0) >= 0.5 else high
