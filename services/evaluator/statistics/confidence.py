"""How well confidence tells right answers from wrong ones: calibration error, Brier score, AUROC."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from schemas.adapters import ConfidenceScore
from schemas.base import Interval
from schemas.evaluation import ReliabilityBin
from services.evaluator.statistics.intervals import Floats, Groups, weighted_share

BINS = 15
MIN_OF_EACH = 10
"""Fewer errors, or right answers, say nothing of how they are told apart."""
_Z95 = 1.959963984540054
_NEAR = 1e-9


def expected_calibration_error(scores: Floats, right: Floats, bins: int = BINS, weights: Floats | None = None) -> float:
    """Return the mean distance of confidence and accuracy over bins of equal size (Nguyen & O'Connor 2015), in [0, 1].

    Answers of one confidence are in one bin. It is above 0 even for a perfect map: bins of n answers scatter by about
    sqrt(p (1 - p) / n).
    """
    weighed = np.ones_like(scores) if weights is None else weights
    gaps = [abs(float(weighed[part] @ (scores[part] - right[part]))) for part in _bins(scores, bins)]
    return min(1.0, float(sum(gaps) / weighed.sum()))  # It may be rounded to just above 1.


def reliability_bins(scores: Floats, right: Floats, weights: Floats, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Return the bins of a reliability diagram, of equal numbers of answers: mean confidence, and the share right.

    Answers of one confidence are in one bin.
    """
    parts = [part for part in _bins(scores, bins) if weights[part].sum() > 0.0]
    return tuple(
        ReliabilityBin(
            confidence=min(1.0, float(np.average(scores[part], weights=weights[part]))),
            accuracy=weighted_share(right[part], weights[part], np.arange(len(part))),
        )
        for part in parts
    )


def _bins(scores: Floats, bins: int) -> list[NDArray[np.intp]]:
    """Return the positions of scores in bins of neighbouring ones, of equal sizes as far as equal scores allow.

    Which of those comes first is the order of rows, which says nothing.
    """
    order = np.argsort(scores, kind="stable")
    ends = np.cumsum([len(part) for part in np.array_split(order, bins)])[:-1]
    inner = scores[order][ends[ends < len(order)]]
    cuts = np.unique(np.searchsorted(scores[order], inner, side="left"))
    return [part for part in np.split(order, cuts) if len(part)]


def brier(scores: Floats, right: Floats, weights: Floats | None = None) -> float:
    """Return the mean squared distance of confidence from 1 (right) or 0 (wrong): Brier 1950."""
    return min(1.0, float(np.average((scores - right) ** 2, weights=weights)))


def auroc_influence(scores: Floats, right: Floats, error_weights: Floats | None = None) -> tuple[float, Floats]:
    """Return the probability that an error has a lower score than a right answer, and how each row moves it.

    The second are values of the influence function, whose sums over groups give the variance: that of DeLong et al.
    (1988), also where the two arms err on different rows. `error_weights`: what each error counts; None: all the same.
    """
    wrong = right == 0
    weights = np.ones_like(scores) if error_weights is None else error_weights
    errors, rights = float(weights[wrong].sum()), int((~wrong).sum())
    order = np.argsort(scores[wrong], kind="stable")
    in_order, mass = scores[wrong][order], np.concatenate(([0.0], np.cumsum(weights[wrong][order])))
    lower, not_higher = (mass[np.searchsorted(in_order, scores[~wrong], side)] for side in ("left", "right"))
    below = np.empty_like(scores)
    below[~wrong] = (lower + not_higher) / 2.0 / errors
    below[wrong] = 1.0 - (rankdata(scores)[wrong] - rankdata(scores[wrong])) / rights
    value = float(below[~wrong].mean())
    return value, (below - value) * np.where(wrong, weights / errors, 1.0 / rights)


def auroc(scores: Floats, right: Floats, groups: Groups) -> Interval | None:
    """Return AUROC with its interval; None for fewer than `MIN_OF_EACH` errors or right answers.

    DeLong's interval knows no spread where all errors are below all right answers, and too little of a few errors near
    that. So it is joined with Newcombe's.
    """
    if not tells_apart(right):
        return None
    value, influence = auroc_influence(scores, right)
    half = _Z95 * float(np.linalg.norm(np.bincount(groups, weights=influence)))
    low, high = _newcombe(value, *(len(np.unique(groups[right == kind])) for kind in (0, 1)))
    return Interval(
        value=value, low=max(0.0, min(low, value - half)), high=min(1.0, max(high, value + half)), n=len(scores)
    )


def _newcombe(value: float, errors: int, rights: int) -> tuple[float, float]:
    """Return the interval of an AUROC whose ends are as far from it as chance takes it there (Newcombe 2006, method 5).

    The variance is Hanley & McNeil's (1982) at the ends, each of the two numbers being taken for their mean.
    """
    mean = (errors + rights) / 2.0 - 1.0

    def beyond(end: float) -> float:
        share = (1.0 - end) / (2.0 - end) + end / (1.0 + end)
        return (value - end) ** 2 - _Z95**2 * end * (1.0 - end) * (1.0 + mean * share) / (errors * rights)

    low = brentq(beyond, 0.0, value - _NEAR) if value > _NEAR else 0.0
    high = brentq(beyond, value + _NEAR, 1.0) if value < 1.0 - _NEAR else 1.0
    return float(low), float(high)


Arm = tuple[Floats, Floats, Floats | None]
"""An arm's scores, its rights (1 or 0), and what each error counts; None: all the same."""


def auroc_difference(candidate: Arm, production: Arm, groups: Groups, level: float) -> tuple[float, float]:
    """Return the candidate's AUROC less production's and its one-sided upper bound."""
    (ours, our_influence), (theirs, their_influence) = auroc_influence(*candidate), auroc_influence(*production)
    deviation = float(np.linalg.norm(np.bincount(groups, weights=our_influence - their_influence)))
    return ours - theirs, ours - theirs + float(norm.isf(level)) * deviation


def tells_apart(right: Floats) -> bool:
    """Return True if there are enough errors and right answers to say how confidence tells them apart."""
    return min(int((right == 0).sum()), int((right > 0).sum())) >= MIN_OF_EACH


def confidence_score(scores: Floats, right: Floats, groups: Groups) -> ConfidenceScore | None:
    """Return the quality of scores in [0, 1], uncalibrated ones for example; None where there is none."""
    if not len(scores):
        return None
    return ConfidenceScore(
        n=len(scores),
        ece=expected_calibration_error(scores, right),
        brier=brier(scores, right),
        auroc=auroc(scores, right, groups),
    )
