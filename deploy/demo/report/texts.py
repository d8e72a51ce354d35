"""Measures generated texts: how near each is to the one that people would write, by the task's metric. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

from deploy.demo.clients import GatewayAnswer
from deploy.demo.report.measure import Z95, Measurement, measure
from schemas.base import Interval
from schemas.tasks import TaskSpec
from shared.answers import answer_form


def measure_texts(answers: Sequence[GatewayAnswer], spec: TaskSpec) -> Measurement:
    """Score answers by `evaluation.text_metric`, failed ones as 0. `accuracy` is that of texts that are equal."""
    grades = [answer_form(spec).grade(answer.row.label, answer.text if answer.ok else None) for answer in answers]
    measured = replace(measure(answers), by_label={}, confusions=())
    return replace(measured, text_score=mean_score([each.score for each in grades]))


def mean_score(scores: Sequence[float]) -> Interval:
    """Return the mean of scores in [0, 1] with its normal 95 % interval; [0, 1] for fewer than two."""
    if len(scores) < 2:
        return Interval(value=fmean(scores) if scores else 0.0, low=0.0, high=1.0, n=len(scores))
    mean, half = fmean(scores), Z95 * stdev(scores) / math.sqrt(len(scores))
    return Interval(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), n=len(scores))
