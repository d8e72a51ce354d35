"""Measures answers: accuracy with its interval, latency percentiles, and accuracy by label or field. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.demo.clients import GatewayAnswer
from schemas.base import Interval
from schemas.tasks import TaskSpec
from services.evaluator.statistics.intervals import mean_interval, wilson
from shared.answers import answer_form
from shared.grading.fields import fields_f1


@dataclass(frozen=True)
class Measurement:
    """The gateway's answers to the held-out questions. `failed` requests count as wrong.

    `variants`: arm → its answers; `by_label`: label → correct answers and all; of objects and calls, field → right
    values and all. `accuracy`: of whole answers.
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
    """F1 over all values of all objects or calls."""
    valid: int | None = None
    """Objects that fit the schema, or calls that can be run."""
    text_score: Interval | None = None
    """Of generated texts: the mean score by the task's metric."""


def measure(answers: Sequence[GatewayAnswer], spec: TaskSpec) -> Measurement:
    """Score answers as the task does."""
    form = answer_form(spec)
    grades = [form.grade(answer.row.label, answer.text if answer.ok else None) for answer in answers]
    graded = list(zip(answers, grades, strict=True))
    fields = [field for grade in grades for field in grade.fields]
    parts = [(field.path, field.matched, field.expected) for field in fields]
    if spec.labels:
        parts = [(answer.row.label, int(grade.right), 1) for answer, grade in graded]
    right, total = Counter[str](), Counter[str]()
    for name, matched, expected in parts:
        right[name] += matched
        total[name] += expected
    wrong = Counter(
        (answer.row.label, answer.text if answer.ok else "(no answer)")
        for answer, grade in graded
        if spec.labels and not grade.right
    )
    times = [answer.latency_ms for answer in answers if answer.ok] or [0.0]
    p50, p95 = map(float, np.percentile(times, (50, 95), method="inverted_cdf"))
    scores = np.array([grade.score for grade in grades])
    return Measurement(
        accuracy=wilson(sum(grade.right for grade in grades), len(answers)),
        latency_ms_p50=p50,
        latency_ms_p95=p95,
        failed=sum(not answer.ok for answer in answers),
        variants=dict(Counter(answer.variant for answer in answers if answer.ok)),
        by_label={name: (right[name], total[name]) for name in sorted(total) if total[name]},
        confusions=tuple((true, given, count) for (true, given), count in wrong.most_common(12)),
        field_f1=fields_f1(fields) if fields else None,
        valid=sum(grade.valid for grade in grades) if fields else None,
        text_score=None if form.is_exact else mean_interval(scores, np.arange(len(scores))),
    )
