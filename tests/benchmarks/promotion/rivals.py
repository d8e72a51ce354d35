"""Other ways to decide whether a candidate is better, on the same truths.

All but the last bet on the decisive labels of pairs and depend on their counts alone, so their chances are exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binom

from services.deployer.statistics.betting import wealths
from tests.benchmarks.promotion.walk import (
    BETTER,
    EQUAL,
    PAIRS,
    Bools,
    Floats,
    Truth,
    chance,
    counts,
    first_hits,
    quantile_labels,
    quantile_pairs,
)

LABELS = 450
LEVELS = (0.05, 0.05 / 52)
"""A test alone, and a week's share of a year."""
_EXPECTATION = Path(__file__).parents[1] / "data" / "expectation.json"
_BURN_IN = 20
"""Labels before an asymptotic test may decide: before, its variance is a guess."""
RUNS = 2_000
_CHECK = 20
_MAX_REQUESTS = 120_000


@dataclass(frozen=True)
class Rival:
    """How a method fares. `false`: P(an equal candidate is promoted within 5,000 pairs). The rest: of a better one.

    `pairs`, `labels`: medians. A label is of a pair that differs or, without pairs, of an answer.
    """

    name: str
    alpha: float
    false: float
    power: float
    pairs: float
    labels: float

    @property
    def yearly(self) -> float:
        """P(any false promotion among 52 equal candidates)."""
        return 1 - (1 - self.false) ** 52


def all_rivals(alpha: float) -> list[Rival]:
    """Return every method at this level."""
    wins, losses = counts(LABELS)
    labels = wins + losses
    peeking = binom.sf(wins - 1, labels, 0.5) <= alpha
    return [
        _sequential("betting test (Ratchet), proof alone", alpha, wealths(wins, 0, losses) >= 1 / alpha),
        _sequential("naive peeking: exact McNemar after each label", alpha, peeking),
        _fixed("exact McNemar at a size fixed beforehand (power .95)", alpha, peeking),
        _sequential("asymptotic confidence sequence, from label 20", alpha, _asymptotic(wins, losses, alpha)),
        _sequential("expectation 0.6.1, proportion of wins", alpha, _expectation(alpha)),
        unpaired(alpha),
    ]


def _sequential(name: str, alpha: float, stops: Bools) -> Rival:
    better, equal = (first_hits({"stop": stops}, truth.share)["stop"] for truth in (BETTER, EQUAL))
    return Rival(
        name,
        alpha,
        chance(equal, EQUAL.discordance),
        chance(better, BETTER.discordance),
        quantile_pairs(better, BETTER.discordance),
        quantile_labels(better),
    )


def _fixed(name: str, alpha: float, significant: Bools) -> Rival:
    """McNemar's test once, at the least number of pairs with a power of .95, where nobody looks before."""
    labels = np.arange(LABELS + 1)

    def significance(truth: Truth, count: int) -> float:
        wins = np.arange(count + 1)
        return float(binom.pmf(wins, count, truth.share)[significant[wins, count - wins]].sum())

    of_labels = {truth: np.array([significance(truth, count) for count in labels]) for truth in (BETTER, EQUAL)}

    def at(truth: Truth, pairs: int) -> float:
        return float(of_labels[truth] @ binom.pmf(labels, pairs, truth.discordance))

    pairs = next((n for n in range(200, PAIRS + 1, 10) if at(BETTER, n) >= 0.95), PAIRS)
    return Rival(name, alpha, at(EQUAL, pairs), at(BETTER, pairs), pairs, round(pairs * BETTER.discordance))


def _asymptotic(wins: Floats, losses: Floats, alpha: float) -> Bools:
    """One-sided Gaussian-mixture confidence sequence of the mean (Waudby-Smith et al. 2021), tuned for 120 labels."""
    labels = np.maximum(wins + losses, 1.0)
    mean = (wins - losses) / labels
    variance = 1 - mean**2
    tuned = -2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)
    rho = labels * tuned / 120 + 1
    width = np.sqrt(2 * variance * rho / (labels * tuned / 120) / labels * np.log1p(np.sqrt(rho) / (2 * alpha)))
    return np.asarray((mean > width) & (wins + losses >= _BURN_IN))


def _expectation(alpha: float) -> Bools:
    """Return where the package's test of a proportion is significant, from the file that its own code wrote."""
    needed = json.loads(_EXPECTATION.read_text())["wins_needed"][str(alpha)]
    stops = np.zeros((LABELS + 1, LABELS + 1), dtype=bool)
    for labels in range(1, LABELS + 1):
        wins = np.arange(needed[labels - 1], labels + 1)
        stops[wins, labels - wins] = True
    return stops


def unpaired(alpha: float, runs: int = RUNS, seed: int = 20) -> Rival:
    """Track-and-stop for the better of two Bernoulli arms (Garivier & Kaufmann 2016), on traffic that is split.

    For arms at .90 and .92 the best shares are .50 to two digits, so the arms take turns. Each request's answer is
    labelled. Looked at every 20 requests; by Monte Carlo.
    """
    false = _stopped(0.90, 0.90, alpha, PAIRS, runs, seed)
    better = _stopped(0.90, 0.92, alpha, _MAX_REQUESTS, runs, seed + 1)
    median = float(np.median(better))
    return Rival(
        "track-and-stop on unpaired traffic", alpha, float(np.isfinite(false).mean()), float((better <= PAIRS).mean()),
        median, median,
    )  # fmt: skip


def _stopped(production: float, candidate: float, alpha: float, requests: int, runs: int, seed: int) -> Floats:
    """Return, by run, after how many requests the candidate is declared better; infinite: never."""
    generator = np.random.default_rng(seed)
    right, found = np.zeros((2, runs)), np.full(runs, np.inf)
    each = _CHECK // 2
    for number in range(_CHECK, requests + 1, _CHECK):
        running = np.isinf(found)
        if not running.any():
            break
        right += generator.binomial(each, [[production], [candidate]], (2, runs))
        answers = number / 2
        means = right / answers
        ratio = answers * (_divergence(means, means.mean(axis=0))).sum(axis=0)
        stop = (ratio >= np.log((1 + np.log(number)) / alpha)) & (means[1] > means[0]) & running
        found[stop] = number
    return found


def _divergence(mean: Floats, other: Floats) -> Floats:
    """Return the Kullback-Leibler divergence of Bernoulli variables."""
    p, q = np.clip(mean, 1e-12, 1 - 1e-12), np.clip(other, 1e-12, 1 - 1e-12)
    return np.asarray(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
