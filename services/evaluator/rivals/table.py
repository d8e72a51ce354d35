"""The rows of the table of approaches: accuracies, paired differences, latencies and costs. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.approaches import Approach, ApproachKind, Gain
from services.evaluator.statistics.intervals import Groups, mean_interval
from shared.model.prices import Cost, PriceList

_Z95 = 1.959963984540054
CLASSIFIERS = (ApproachKind.TF_IDF, ApproachKind.EMBEDDING)


@dataclass(frozen=True)
class Measured:
    """One approach's answers: position in the evaluation set → whether it is right, of generated text its score.

    `latencies_ms`: of the answers that came; `seconds`: how long an answer keeps a replica, or a core, busy.
    `unanswered`: the positions whose requests failed.
    """

    kind: ApproachKind
    right: Mapping[int, float]
    latencies_ms: Sequence[float]
    seconds: float
    unanswered: frozenset[int] = frozenset()
    adapter: str | None = None
    examples: int = 0
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0


def approach(
    measured: Measured, candidate: Mapping[int, float], cost: Cost, answers_per_month: float | None, groups: Groups
) -> Approach:
    """Return the row. `candidate`: the candidate's answers, as `Measured.right`. `groups`: of the evaluation set's
    rows, by their positions: near-copies count as one.

    Where a request of the approach failed, which is wrong of its answers, the candidate gains nothing by it.
    """
    right = measured.right
    both = [position for position in right if position in candidate and position not in measured.unanswered]
    pairs = [(candidate[position], right[position]) for position in both]
    is_candidate = measured.kind is ApproachKind.CANDIDATE
    scores = np.array(list(right.values()), dtype=np.float64)
    of_rows = np.unique(groups[list(right)], return_inverse=True)[1]  # Without gaps: they would be drawn, too.
    return Approach(
        kind=measured.kind,
        adapter=measured.adapter,
        accuracy=mean_interval(scores, of_rows),
        failed=len(measured.unanswered),
        candidate_gain=None if is_candidate or not pairs else _gain(pairs, groups[both]),
        examples=measured.examples,
        latency_ms_p50=statistics.median(measured.latencies_ms) if measured.latencies_ms else 0.0,
        latency_ms_p95=percentile(measured.latencies_ms, 0.95),
        prompt_tokens=measured.prompt_tokens,
        answer_tokens=measured.answer_tokens,
        cost_per_month=None if answers_per_month is None else cost.amount * answers_per_month,
    )


def _gain(pairs: Sequence[tuple[float, float]], groups: Groups) -> Gain:
    has_copies = len(np.unique(groups)) < len(pairs)
    if not has_copies and all(score in (0.0, 1.0) for pair in pairs for score in pair):
        return paired_difference([(bool(first), bool(second)) for first, second in pairs])
    return mean_difference([first - second for first, second in pairs], groups)


def answer_cost(measured: Measured, prices: PriceList, base_model: str) -> Cost:
    """Return the cost of one answer of an approach: of a replica's time or tokens, or of a core's time."""
    if measured.kind in CLASSIFIERS:
        return prices.core_answer(measured.seconds)
    return prices.model_answer(base_model, measured.seconds, measured.prompt_tokens, measured.answer_tokens)


def paired_difference(pairs: Sequence[tuple[bool, bool]]) -> Gain:
    """Return the share that is right of the first minus that of the second, with Agresti and Min's interval (2005).

    The interval is Wald's after half a row is added to each of the four cells, so that it has a width where no row
    differs.
    """
    n = len(pairs)
    gained = sum(first and not second for first, second in pairs)
    lost = sum(second and not first for first, second in pairs)
    b, c, total = gained + 0.5, lost + 0.5, n + 2
    centre = (b - c) / total
    half = _Z95 * math.sqrt(b + c - (b - c) ** 2 / total) / total
    value = (gained - lost) / n
    return _difference(value, centre - half, centre + half)


def mean_difference(differences: Sequence[float], groups: Groups) -> Gain:
    """Return the mean of differences in [-1, 1], one a row, with a normal interval. `groups`: the group of each row.

    The variance is that of a ratio, between groups (Särndal et al. 1992, 5.7). A group of -1 and one of 1, of the mean
    size, are added to the interval's, so that it has a width where no row differs.
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(numbers).astype(np.float64)
    mean_size = float(sizes.mean())
    sums = np.array([*np.bincount(numbers, weights=differences), mean_size, -mean_size])
    sizes = np.array([*sizes, mean_size, mean_size])
    count, total = len(sizes), float(sizes.sum())
    centre = float(sums.sum()) / total
    half = _Z95 * math.sqrt(count / (count - 1) * float(((sums - centre * sizes) ** 2).sum())) / total
    return _difference(statistics.fmean(differences), centre - half, centre + half)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile; 0 for no values."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else 0.0


def _difference(value: float, low: float, high: float) -> Gain:
    return Gain(value=value, low=max(-1.0, min(low, value)), high=min(1.0, max(high, value)))
