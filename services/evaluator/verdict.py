"""From the answers of both arms to the event: scores, gates, verdict. Pure. Loads SciPy: only in the job's process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from schemas.adapters import AdapterEvaluated, ArmScore, Calibration, ConfidenceScore
from schemas.tasks import TaskKind, TaskSpec
from services.evaluator.adversarial.misled import AdversarialAnswers, Misled
from services.evaluator.adversarial.report import adversarial_report
from services.evaluator.comparison import Comparison, traffic_of
from services.evaluator.domain import Candidate, GradedAnswers, PastResult, Question
from services.evaluator.gates import check_gates, verdict
from services.evaluator.statistics.classes import class_scores, confusions, field_scores
from services.evaluator.statistics.confidence import confidence_score
from services.evaluator.statistics.intervals import Floats, Groups, group_numbers, mean_interval, weighted_share, wilson
from shared.identity import event_id

if TYPE_CHECKING:
    from services.evaluator.recipe import ArmAnswers


@dataclass(frozen=True)
class Asked:
    """What both arms were asked, evaluation rows before golden ones, and what they answered.

    `wrong_twice`: positions in `golden` of must-pass rows that the candidate got wrong, and wrong again. `past`: what
    promoted adapters got right of the golden set. `adversarial`: what both answered to inputs made to mislead.
    """

    evaluation: Sequence[Question]
    golden: Sequence[Question]
    candidate: ArmAnswers
    production: ArmAnswers
    wrong_twice: Sequence[int] = ()
    past: Sequence[PastResult] = ()
    adversarial: AdversarialAnswers | None = None


def verdict_event(
    trained: Candidate, production: str | None, name: str, asked: Asked, calibration: Calibration | None = None
) -> AdapterEvaluated:
    """Build the event. `production`: the adapter of the other arm; the id follows from the job's name."""
    spec = trained.spec
    evaluation, golden = _compared(asked, spec)
    misled = None if asked.adversarial is None else _misled(asked.adversarial, evaluation, spec)
    gates = check_gates(spec, evaluation, golden, asked.wrong_twice, asked.past, misled)
    return AdapterEvaluated(
        event_id=event_id("adapter evaluated", name),
        task=trained.task,
        task_revision=trained.task_revision,
        cycle_id=trained.cycle_id,
        adapter=trained.adapter,
        adapter_uri=trained.uri,
        base_model=trained.base_model,
        dataset_id=trained.dataset_id,
        dataset_uri=trained.dataset_uri,
        data_cutoff=trained.data_cutoff,
        verdict=verdict(gates),
        gates=gates,
        candidate=score(trained.adapter, evaluation.candidate, asked.evaluation, asked.candidate, spec),
        production=score(production, evaluation.production, asked.evaluation, asked.production, spec),
        gain=evaluation.gain,
        golden_lost=len(golden.lost),
        golden_gained=len(golden.gained),
        golden_total=len(golden.questions),
        calibration=calibration,
        adversarial=None if misled is None else adversarial_report(misled),
        spec=spec,
    )


def _compared(asked: Asked, spec: TaskSpec) -> tuple[Comparison, Comparison]:
    """Return both arms on the evaluation set and on the golden set."""
    start = len(asked.evaluation)
    evaluation = Comparison(
        asked.evaluation,
        asked.candidate.graded(asked.evaluation, 0, spec),
        asked.production.graded(asked.evaluation, 0, spec),
        _confidence(asked.candidate, start),
        _confidence(asked.production, start),
    )
    candidate, production = (arm.graded(asked.golden, start, spec) for arm in (asked.candidate, asked.production))
    return evaluation, Comparison(asked.golden, candidate, production)


def _misled(asked: AdversarialAnswers, evaluation: Comparison, spec: TaskSpec) -> Misled:
    questions, count = [case.question for case in asked.cases], len(asked.cases)
    adversarial = Comparison(
        questions,
        asked.candidate.graded(questions, 0, spec),
        asked.production.graded(questions, 0, spec),
        _confidence(asked.candidate, count),
        _confidence(asked.production, count),
    )
    return Misled(spec, asked.cases, adversarial, evaluation)


def _confidence(arm: ArmAnswers, count: int) -> Floats | None:
    """Return the confidence of the first answers; None where the engine reports none at all."""
    found = np.array([np.nan if score is None else score for score in arm.scores[:count]], dtype=np.float64)
    return None if not len(found) or np.isnan(found).all() else found


def _quality(confidences: Floats, right: Floats, groups: Groups) -> ConfidenceScore | None:
    known = ~np.isnan(confidences)
    return confidence_score(confidences[known], right[known], groups[known])


def score(
    adapter: str | None, arm: GradedAnswers, questions: Sequence[Question], answers: ArmAnswers, spec: TaskSpec
) -> ArmScore:
    """Return what one arm got right, with intervals, how long it took, and how well its confidence tells errors.

    An extraction's classes are its fields; generated text has none, and `macro_f1` is the mean score then.
    """
    groups = group_numbers([question.group for question in questions])
    right, scores = np.array(arm.right, dtype=np.float64), np.array(arm.scores, dtype=np.float64)
    mean, traffic, confidences = mean_interval(scores, groups), traffic_of(questions), _confidence(answers, len(right))
    expected = [question.answer.strip() for question in questions]
    given = ["" if answer is None else answer.strip() for answer in arm.answers]
    labels = spec.labels if spec.kind is TaskKind.CLASSIFICATION else ()
    if labels:
        classes, averages = class_scores(expected, given, labels, groups)
    else:
        classes, averages = field_scores([grade.fields for grade in arm.grades], groups)
    valid = np.array([grade.valid for grade in arm.grades], dtype=np.float64)
    p50, p95 = np.percentile(answers.latencies_ms, [50, 95]) if answers.latencies_ms else (0.0, 0.0)
    return ArmScore(
        adapter=adapter,
        accuracy=mean_interval(right, groups) if len(right) else wilson(0, 0),
        score=mean,
        traffic_accuracy=None
        if traffic is None
        else weighted_share(right[traffic.positions], traffic.weights, groups[traffic.positions]),
        macro_f1=averages[0].f1.value if averages else mean.value,
        averages=averages,
        classes=classes,
        confusions=confusions(expected, given, labels) if labels else (),
        confidence=None if confidences is None else _quality(confidences, right, groups),
        valid=mean_interval(valid, groups) if spec.output_fields and len(valid) else None,
        failed=arm.failed,
        latency_ms_p50=float(p50),
        latency_ms_p95=float(p95),
    )
