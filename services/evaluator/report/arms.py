"""What one arm scored on the evaluation set: with intervals, by class or field, and how fast it answered. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from schemas.adapters import ArmScore, ClassScore, ConfidenceScore
from schemas.evaluation import ArmReport, Speed
from schemas.tasks import TaskSpec
from services.evaluator.comparison import traffic_of
from services.evaluator.domain import GradedAnswers, Question
from services.evaluator.statistics.classes import call_scores, called_functions, class_scores, confusions, field_scores
from services.evaluator.statistics.confidence import confidence_score
from services.evaluator.statistics.intervals import Floats, Groups, group_numbers, mean_interval, weighted_share, wilson
from shared.answers import answer_form

if TYPE_CHECKING:
    from services.evaluator.recipe import ArmAnswers

_SIDES = (False, True)
"""Of a confusion: what is right, and what was given."""


def arm_report(
    adapter: str | None,
    arm: GradedAnswers,
    questions: Sequence[Question],
    answers: ArmAnswers,
    spec: TaskSpec,
    concurrency: int = 1,
    cost_per_month: float | None = None,
) -> ArmReport:
    """Return what one arm got right, with intervals, how long it took, and how well its confidence tells errors.

    An extraction's classes are its fields, those of calls their functions; generated text has none, and `macro_f1` is
    the mean score then. Of several labels, accuracy is that of whole sets (subset accuracy).
    """
    groups = group_numbers([question.group for question in questions])
    right, scores = np.array(arm.right, dtype=np.float64), np.array(arm.scores, dtype=np.float64)
    mean, traffic = mean_interval(scores, groups), traffic_of(questions)
    confidences = confidence_of(answers, len(right), spec)
    expected = [question.answer.strip() for question in questions]
    given = ["" if answer is None else answer.strip() for answer in arm.answers]
    labels: Sequence[str] = spec.choices
    arguments: tuple[ClassScore, ...] = ()
    if labels:
        classes, averages = class_scores(expected, given, labels, groups)
    elif spec.tools:
        grades = [grade.fields for grade in arm.grades]
        classes, averages, arguments = call_scores(grades, groups)
        expected, given = ([called_functions(fields, given=of_answer) for fields in grades] for of_answer in _SIDES)
        labels = sorted({*expected, *given} - {""})
    else:
        has_sets = bool(spec.labels)
        classes, averages = field_scores([grade.fields for grade in arm.grades], groups, micro=has_sets)
    called = np.array([e == g for e, g in zip(expected, given, strict=True)], dtype=np.float64)
    valid = np.array([grade.valid for grade in arm.grades], dtype=np.float64)
    p50, p95 = map(float, np.percentile(answers.latencies_ms, [50, 95]) if answers.latencies_ms else (0.0, 0.0))
    return ArmReport(
        score=ArmScore(
            adapter=adapter,
            accuracy=mean_interval(right, groups) if len(right) else wilson(0, 0),
            score=mean,
            traffic_accuracy=None
            if traffic is None
            else weighted_share(right[traffic.positions], traffic.weights, groups[traffic.positions]),
            macro_f1=averages[0].f1.value if averages else mean.value,
            averages=averages,
            function_accuracy=mean_interval(called, groups) if spec.tools and len(called) else None,
            confidence=None if confidences is None else _quality(confidences, right, groups),
            valid=mean_interval(valid, groups) if (spec.answer_schema or spec.tools) and len(valid) else None,
            failed=arm.failed,
            latency_ms_p50=p50,
            latency_ms_p95=p95,
        ),
        classes=classes,
        arguments=arguments,
        confusions=confusions(expected, given, labels) if labels else (),
        speed=Speed(
            latency_ms_p50=p50,
            latency_ms_p95=p95,
            tokens_per_second=answers.tokens_per_second or None,
            prompt_tokens=answers.prompt_tokens,
            answer_tokens=answers.answer_tokens,
            concurrency=concurrency,
            cost_per_month=cost_per_month,
        ),
    )


def confidence_of(arm: ArmAnswers, count: int, spec: TaskSpec) -> Floats | None:
    """Return the confidence of the first answers; None where the engine reports none at all, and of generated text.

    A text that is not word for word the right one is no error, so its confidence cannot tell errors.
    """
    if not answer_form(spec).is_exact:
        return None
    found = np.array([np.nan if score is None else score for score in arm.scores[:count]], dtype=np.float64)
    return None if not len(found) or np.isnan(found).all() else found


def _quality(confidences: Floats, right: Floats, groups: Groups) -> ConfidenceScore | None:
    known = ~np.isnan(confidences)
    return confidence_score(confidences[known], right[known], groups[known])
