"""Measures answers: accuracy with its Wilson interval, latency percentiles, accuracy per class. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.demo.clients import GatewayAnswer
from schemas.base import Interval
from services.evaluator.statistics.intervals import wilson


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
    times = [answer.latency_ms for answer in answers if answer.ok] or [0.0]
    p50, p95 = map(float, np.percentile(times, (50, 95), method="inverted_cdf"))
    return Measurement(
        accuracy=wilson(sum(correct.values()), len(answers)),
        latency_ms_p50=p50,
        latency_ms_p95=p95,
        failed=sum(not answer.ok for answer in answers),
        variants=dict(Counter(answer.variant for answer in answers if answer.ok)),
        by_label={label: (correct[label], total[label]) for label in sorted(total)},
        confusions=tuple((true, given, count) for (true, given), count in wrong.most_common(12)),
    )
