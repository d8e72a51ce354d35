"""Measures generated texts: how near each is to the one that people would write, by the task's metric. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deploy.demo.clients import GatewayAnswer
from deploy.demo.report.measure import Measurement, measure
from schemas.tasks import TaskSpec
from services.evaluator.statistics.intervals import mean_interval
from shared.answers import answer_form


def measure_texts(answers: Sequence[GatewayAnswer], spec: TaskSpec) -> Measurement:
    """Score answers by `evaluation.text_metric`, failed ones as 0. `accuracy` is that of texts that are equal."""
    grades = [answer_form(spec).grade(answer.row.label, answer.text if answer.ok else None) for answer in answers]
    measured = replace(measure(answers), by_label={}, confusions=())
    scores = np.array([each.score for each in grades])
    return replace(measured, text_score=mean_interval(scores, np.arange(len(scores))))
