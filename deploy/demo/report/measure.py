"""Measures answers: accuracy with its Wilson interval, latency percentiles, accuracy per class. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.demo.clients import GatewayAnswer
from schemas.base import Interval

Z95 = 1.959963984540054


def wilson(correct: int, n: int) -> Interval:
    """Return the share `correct / n` with its 95 % Wilson score interval; for n = 0 the interval is 0 to 1."""
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n}")
    if n == 0:
        return Interval(value=0.0, low=0.0, high=1.0, n=0)
    share, z2 = correct / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(value=share, low=max(min(centre - half, share), 0.0), high=min(max(centre + half, share), 1.0), n=n)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile; 0 for no values."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else 0.0


@dataclass(frozen=True)
class Measurement:
    """The gateway's answers to the held-out questions. `failed` requests count as wrong.

    `variants`: arm → its answers; `by_label`: label → correct answers and all; of an extraction, field → right values
    and all.
    """

    accuracy: Interval
    latency_ms_p50: float
    latency_ms_p95: float
    failed: int
    variants: dict[str, int]
    by_label: dict[str, tuple[int, int]]
    confusions: tuple[tuple[str, str, int], ...]
    """The most frequent mistakes: true label, answer, count."""
    field_f1: float | None = None
    """Of an extraction: F1 over all values of all answers."""
    valid: int | None = None
    """Of an extraction: answers that are JSON by the schema."""
    text_score: Interval | None = None
    """Of a generation: the mean score by the task's metric."""


def measure(answers: Sequence[GatewayAnswer]) -> Measurement:
    """Score answers against the rows' true labels."""
    correct: Counter[str] = Counter()
    total: Counter[str] = Counter()
    wrong: Counter[tuple[str, str]] = Counter()
    for answer in answers:
        label = answer.row.label
        total[label] += 1
        if answer.correct:
            correct[label] += 1
        else:
            wrong[label, answer.text if answer.ok else "(no answer)"] += 1
    times = [answer.latency_ms for answer in answers if answer.ok]
    return Measurement(
        accuracy=wilson(sum(correct.values()), len(answers)),
        latency_ms_p50=percentile(times, 0.5),
        latency_ms_p95=percentile(times, 0.95),
        failed=sum(not answer.ok for answer in answers),
        variants=dict(Counter(answer.variant for answer in answers if answer.ok)),
        by_label={label: (correct[label], total[label]) for label in sorted(total)},
        confusions=tuple((true, given, count) for (true, given), count in wrong.most_common(12)),
    )
