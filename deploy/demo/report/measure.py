"""Answers to numbers: accuracy with its Wilson interval, latency percentiles, accuracy per class. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.demo.clients import Asked
from schemas.base import Interval

Z95 = 1.959963984540054


def wilson(right: int, n: int) -> Interval:
    """The share `right / n` with its 95 % Wilson score interval. n = 0: 0 to 1, nothing is known."""
    if not 0 <= right <= n:
        raise ValueError(f"{right} of {n}")
    if n == 0:
        return Interval(value=0.0, low=0.0, high=1.0, n=0)
    share, z2 = right / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(value=share, low=max(min(centre - half, share), 0.0), high=min(max(centre + half, share), 1.0), n=n)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0 for no values."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else 0.0


@dataclass(frozen=True)
class Measurement:
    """What the gateway answered to the held-out questions. `failed` requests count as wrong."""

    accuracy: Interval
    latency_ms_p50: float
    latency_ms_p95: float
    failed: int
    variants: dict[str, int]
    by_label: dict[str, tuple[int, int]]
    confusions: tuple[tuple[str, str, int], ...]
    """The most frequent mistakes: true label, answer, count."""


def measure(asked: Sequence[Asked]) -> Measurement:
    """Score answers against the rows' true labels."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    wrong: Counter[tuple[str, str]] = Counter()
    for one in asked:
        total[one.row.label] += 1
        if one.right:
            right[one.row.label] += 1
        else:
            wrong[one.row.label, one.text if one.ok else "(no answer)"] += 1
    times = [one.latency_ms for one in asked if one.ok]
    return Measurement(
        accuracy=wilson(sum(right.values()), len(asked)),
        latency_ms_p50=percentile(times, 0.5),
        latency_ms_p95=percentile(times, 0.95),
        failed=sum(not one.ok for one in asked),
        variants=dict(Counter(one.variant for one in asked if one.ok)),
        by_label={label: (right[label], total[label]) for label in sorted(total)},
        confusions=tuple((true, said, count) for (true, said), count in wrong.most_common(12)),
    )
