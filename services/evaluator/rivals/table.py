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
    gains = [candidate[position] - right[position] for position in both]
    is_candidate = measured.kind is ApproachKind.CANDIDATE
    scores, times = np.array(list(right.values()), dtype=np.float64), measured.latencies_ms or [0.0]
    of_rows = np.unique(groups[list(right)], return_inverse=True)[1]  # Without gaps: they would be drawn, too.
    return Approach(
        kind=measured.kind,
        adapter=measured.adapter,
        accuracy=mean_interval(scores, of_rows),
        failed=len(measured.unanswered),
        candidate_gain=None if is_candidate or not both else mean_difference(gains, groups[both]),
        examples=measured.examples,
        latency_ms_p50=float(np.median(times)),
        latency_ms_p95=float(np.percentile(times, 95, method="inverted_cdf")),
        prompt_tokens=measured.prompt_tokens,
        answer_tokens=measured.answer_tokens,
        cost_per_month=None if answers_per_month is None else cost.amount * answers_per_month,
    )


def answer_cost(measured: Measured, prices: PriceList, base_model: str) -> Cost:
    """Return the cost of one answer of an approach: of a replica's time or tokens, or of a core's time."""
    if measured.kind is ApproachKind.LINEAR:
        return prices.core_answer(measured.seconds)
    return prices.model_answer(base_model, measured.seconds, measured.prompt_tokens, measured.answer_tokens)


def mean_difference(differences: Sequence[float], groups: Groups) -> Gain:
    """Return the mean of differences in [-1, 1], one a row, with a normal interval. `groups`: the group of each row.

    The variance is that of a ratio, between groups (Särndal et al. 1992, 5.7). A group of -1 and one of 1, of the mean
    size, are added to the interval's, so that it has a width where no row differs (as Agresti and Min's, 2005).
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(numbers).astype(np.float64)
    mean_size = float(sizes.mean())
    sums = np.array([*np.bincount(numbers, weights=differences), mean_size, -mean_size])
    sizes = np.array([*sizes, mean_size, mean_size])
    count, total = len(sizes), float(sizes.sum())
    centre = float(sums.sum()) / total
    half = _Z95 * math.sqrt(count / (count - 1) * float(((sums - centre * sizes) ** 2).sum())) / total
    value = statistics.fmean(differences)
    return Gain(value=value, low=max(-1.0, min(centre - half, value)), high=min(1.0, max(centre + half, value)))
