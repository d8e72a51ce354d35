"""From the answers of both arms to the report and the event. Pure. Loads SciPy: only in the job's process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from schemas.adapters import AdapterEvaluated, Calibration, EvaluatedCandidate, TextScore
from schemas.approaches import Approach, ApproachKind, ApproachTable
from schemas.evaluation import EvaluationReport, Golden, Reliability
from schemas.judging import JudgeReport
from schemas.tasks import TaskSpec
from services.evaluator.adversarial.misled import AdversarialAnswers, Misled
from services.evaluator.adversarial.report import adversarial_report
from services.evaluator.comparison import Comparison
from services.evaluator.domain import ALL_RIGHT, Candidate, PastResult, Question, Repeated, golden_grades, is_model
from services.evaluator.gates import check_gates, p_all_rows, verdict
from services.evaluator.golden_gates import judged_part
from services.evaluator.recipe import ArmAnswers
from services.evaluator.report.arms import arm_report, confidence_of
from services.evaluator.report.headline import headline
from services.evaluator.report.parts import part_scores
from services.evaluator.statistics.intervals import mean_interval
from services.evaluator.statistics.paired import difference
from services.evaluator.texts.metrics import Scores
from shared.identity import event_id


@dataclass(frozen=True)
class Asked:
    """What both arms were asked, evaluation rows before golden ones, and what they answered.

    `repeated`: the must-pass rows of `golden` that the candidate got wrong, and not right when they were repeated.
    `past`: what promoted adapters got right of the golden set. `adversarial`: what both answered to inputs made to
    mislead. `texts`: generated texts' scores on the evaluation rows by metric.
    """

    evaluation: Sequence[Question]
    golden: Sequence[Question]
    candidate: ArmAnswers
    production: ArmAnswers
    repeated: Repeated = ALL_RIGHT
    past: Sequence[PastResult] = ()
    adversarial: AdversarialAnswers | None = None
    texts: Scores = field(default_factory=dict)
    judge: JudgeReport | None = None


@dataclass(frozen=True)
class Extras:
    """What is measured beside the two arms. `concurrency`: how many requests at a time the arms were asked."""

    approaches: ApproachTable
    calibration: Calibration | None = None
    reliability: Reliability | None = None
    concurrency: int = 1

    def cost(self, kind: ApproachKind) -> float | None:
        """What an arm costs a month, as the table of approaches has it."""
        rows: Sequence[Approach] = self.approaches.approaches
        return next((row.cost_per_month for row in rows if row.kind is kind), None)


def evaluation_report(
    trained: Candidate, production: str | None, name: str, asked: Asked, extras: Extras, now: datetime
) -> EvaluationReport:
    """Judge the candidate. `production`: the adapter of the other arm; `name`: the job's, and the report's."""
    spec = trained.spec
    evaluation, golden = _compared(asked, spec)
    misled = None if asked.adversarial is None else _misled(asked.adversarial, _graded(asked, evaluation, spec), spec)
    gates = check_gates(spec, evaluation, golden, asked.repeated, asked.past, misled, asked.judge)
    found, concurrency = verdict(gates), extras.concurrency
    candidate = arm_report(
        trained.adapter, evaluation.candidate, asked.evaluation, asked.candidate, spec, concurrency,
        extras.cost(ApproachKind.CANDIDATE),
    )  # fmt: skip
    opponent = arm_report(
        production, evaluation.production, asked.evaluation, asked.production, spec, concurrency,
        extras.cost(ApproachKind.PRODUCTION),
    )  # fmt: skip
    arms, judged = (candidate.score, opponent.score), judged_part(spec, golden)
    return EvaluationReport(
        evaluation=name,
        task=trained.task,
        task_revision=trained.task_revision,
        kind=spec.kind,
        cycle_id=trained.cycle_id,
        created_at=now,
        adapter=trained.adapter,
        base_model=trained.base_model,
        dataset_id=trained.dataset_id,
        dataset_uri=trained.dataset_uri,
        headline=headline(found, gates, arms, evaluation.gain, p_all_rows(evaluation), extras.approaches),
        verdict=found,
        gates=gates,
        candidate=candidate,
        production=opponent,
        gain=evaluation.gain,
        texts=text_table(asked.texts, evaluation, spec),
        judge=asked.judge,
        parts=part_scores(evaluation, spec),
        lost=_row_ids(asked.evaluation, evaluation.lost),
        gained=_row_ids(asked.evaluation, evaluation.gained),
        golden=Golden(total=len(judged.questions), lost=len(judged.lost), gained=len(judged.gained)),
        calibration=extras.calibration,
        reliability=extras.reliability,
        approaches=extras.approaches,
        adversarial=None if misled is None else adversarial_report(misled),
    )


def evaluated_event(trained: Candidate, report: EvaluationReport, uri: str) -> AdapterEvaluated:
    """Build the event of a report that is published at `uri`. The id follows from the job's name."""
    return AdapterEvaluated(
        event_id=event_id("adapter evaluated", report.evaluation),
        task=trained.task,
        task_revision=trained.task_revision,
        cycle_id=trained.cycle_id,
        kind="model" if is_model(trained) else "adapter",
        adapter_uri=trained.uri,
        data_cutoff=trained.data_cutoff,
        candidate=report.candidate.score,
        production=report.production.score,
        gain=report.gain,
        golden_lost=report.golden.lost,
        golden_gained=report.golden.gained,
        golden_total=report.golden.total,
        approaches=report.approaches,
        report=uri,
        spec=trained.spec,
        **{name: getattr(report, name) for name in EvaluatedCandidate.model_fields},
    )


def _compared(asked: Asked, spec: TaskSpec) -> tuple[Comparison, Comparison]:
    """Return both arms on the evaluation set and on the golden set."""
    start = len(asked.evaluation)
    ours, theirs = (arm.graded(asked.evaluation, 0, spec) for arm in (asked.candidate, asked.production))
    if scores := asked.texts.get(spec.evaluation.text_metric):
        ours, theirs = ours.with_scores(scores[0].tolist()), theirs.with_scores(scores[1].tolist())
    evaluation = Comparison(
        asked.evaluation,
        ours,
        theirs,
        confidence_of(asked.candidate, start, spec),
        confidence_of(asked.production, start, spec),
    )
    candidate, production = (
        golden_grades(asked.golden, arm.graded(asked.golden, start, spec), spec)
        for arm in (asked.candidate, asked.production)
    )
    return evaluation, Comparison(asked.golden, candidate, production)


def _graded(asked: Asked, evaluation: Comparison, spec: TaskSpec) -> Comparison:
    """Return the comparison by the scores that changed rows have, too, whatever metric the task compares texts by."""
    candidate, production = (arm.graded(asked.evaluation, 0, spec) for arm in (asked.candidate, asked.production))
    return replace(evaluation, candidate=candidate, production=production)


def text_table(scores: Scores, evaluation: Comparison, spec: TaskSpec) -> tuple[TextScore, ...]:
    """Return both arms' means by every metric, each with its interval, and their paired difference."""
    groups, unanswered = evaluation.groups, [answer is None for answer in evaluation.production.answers]
    return tuple(
        TextScore(
            metric=metric,
            candidate=mean_interval(candidate, groups),
            production=mean_interval(production, groups),
            difference=difference(candidate, np.where(unanswered, candidate, production), groups, None, "rows"),
            gates=metric is spec.evaluation.text_metric,
        )
        for metric, (candidate, production) in scores.items()
    )


def _misled(asked: AdversarialAnswers, unchanged: Comparison, spec: TaskSpec) -> Misled:
    questions, count = [case.question for case in asked.cases], len(asked.cases)
    adversarial = Comparison(
        questions,
        asked.candidate.graded(questions, 0, spec),
        asked.production.graded(questions, 0, spec),
        confidence_of(asked.candidate, count, spec),
        confidence_of(asked.production, count, spec),
    )
    return Misled(spec, asked.cases, adversarial, unchanged)


def _row_ids(questions: Sequence[Question], positions: Sequence[int]) -> tuple[str, ...]:
    return tuple(name for position in positions if (name := questions[position].row_id))
