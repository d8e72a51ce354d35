"""The report of an evaluation, evaluation.json: everything behind an `adapters.evaluated`, which has its address.

    evaluations/<evaluation>/evaluation.json    `EvaluationReport`
    evaluations/<evaluation>/evaluation.html    the same for people
    evaluations/<evaluation>/manifest.json

An adapter that is evaluated again, against another opponent, has another report. A report quotes no row, so that it
outlives every erasure: it names rows by the `example_id` that they have in the dataset's eval.jsonl.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from schemas.adapters import ArmScore, ClassScore, EvaluatedCandidate, ScoreDifference
from schemas.approaches import ApproachTable, Gain
from schemas.base import AdapterName, Frozen, Identifier, Interval, Probability, TaskName
from schemas.tasks import TaskKind

EVALUATIONS = "evaluations"
"""The kind of these folders in the artifact store."""
EVALUATION_FILE, EVALUATION_PAGE = "evaluation.json", "evaluation.html"
Name = Annotated[str, Field(min_length=1, max_length=500)]


class ConfusionCell(Frozen):
    """A cell of the confusion matrix: how often `given` was answered where `expected` is right."""

    expected: Identifier
    given: Identifier = Field(description="`(no label)`: a failed request, no label, or no call that can be run.")
    count: int = Field(ge=1)


class ReliabilityBin(Frozen):
    """Answers of neighbouring confidence: their mean confidence, and how many of them are right."""

    confidence: Probability
    accuracy: Interval


class Reliability(Frozen):
    """How often answers are right at each confidence, in bins of equal size: uncalibrated, and calibrated.

    `after` is cross-fitted: no answer is mapped by a fit that used it.
    """

    before: tuple[ReliabilityBin, ...] = Field(max_length=50)
    after: tuple[ReliabilityBin, ...] = Field(max_length=50)
    basis: Literal["rows", "traffic"]


class Speed(Frozen):
    """What the serving engine did while it was asked the evaluation set, `concurrency` requests at a time."""

    latency_ms_p50: float = Field(ge=0.0)
    latency_ms_p95: float = Field(ge=0.0)
    tokens_per_second: float | None = Field(
        default=None, ge=0.0, description="Answer tokens of all requests together; None: not measured."
    )
    prompt_tokens: float = Field(default=0.0, ge=0.0, description="Mean of a request; 0: unknown.")
    answer_tokens: float = Field(default=0.0, ge=0.0)
    concurrency: int = Field(ge=1)
    cost_per_month: float | None = Field(default=None, ge=0.0, description="In the currency of the approaches.")


class ArmReport(Frozen):
    """One arm: its scores as in the event, and what is too large for an event."""

    score: ArmScore
    classes: tuple[ClassScore, ...] = Field(
        default=(),
        max_length=500,
        description="Of each label, of each field of an extraction, or of each function: whether it was called.",
    )
    arguments: tuple[ClassScore, ...] = Field(
        default=(), max_length=500, description="Of each function with arguments: of the values of all of them."
    )
    confusions: tuple[ConfusionCell, ...] = Field(
        default=(), max_length=250_000, description="Cells that are not empty, the most frequent first."
    )
    speed: Speed


PartKind = Literal["class", "failure_mode", "app", "language", "length", "field", "function", "argument", "label"]


class PartScore(Frozen):
    """A part of the evaluation set that is looked at by itself: both arms' mean scores on it, and their difference."""

    kind: PartKind
    name: Name
    rows: int = Field(ge=1)
    candidate: Interval
    production: Interval
    gain: Gain
    p_worse: Probability | None = Field(
        description='One-sided p-value of "not worse", adjusted for all parts (Holm); None: too few rows to be judged '
        "alone; the gate judges such parts together."
    )
    worse: bool = Field(description="The candidate is shown to be worse here.")


class Golden(Frozen):
    total: int = Field(ge=0, description="Rows whose answers are right or wrong (`evaluation.golden_score`).")
    lost: int = Field(ge=0, description="Rows that production answers right and the candidate not.")
    gained: int = Field(ge=0)


class EvaluationReport(EvaluatedCandidate):
    """evaluation.json: how a candidate compares with production, gate by gate, with everything that was measured."""

    evaluation: Name = Field(description="The name of its folder: candidate, opponent, and a hash of the occasion.")
    task: TaskName
    task_revision: Identifier
    kind: TaskKind
    cycle_id: Identifier | None
    created_at: AwareDatetime
    candidate: ArmReport
    production: ArmReport
    gain: ScoreDifference
    parts: tuple[PartScore, ...] = Field(default=(), max_length=2_000)
    lost: tuple[Identifier, ...] = Field(
        default=(), max_length=100_000, description="Rows that production answers right and the candidate not."
    )
    gained: tuple[Identifier, ...] = Field(default=(), max_length=100_000)
    golden: Golden
    reliability: Reliability | None = None
    approaches: ApproachTable


class EvaluationManifest(Frozen):
    """manifest.json: what the report is of."""

    evaluation: Name
    task: TaskName
    adapter: AdapterName
    created_at: AwareDatetime
    files: dict[str, str] = Field(description="File name to SHA-256.")
