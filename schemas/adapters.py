"""Events about adapters: what was trained, and how it compares with production before it sees live traffic."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from schemas.adversarial import AdversarialReport
from schemas.approaches import ApproachTable
from schemas.base import AdapterName, Event, Frozen, Gate, Identifier, Interval, Probability, Verdict
from schemas.conversation import Messages
from schemas.evaluation_settings import TextMetric
from schemas.judging import JudgeReport
from schemas.tasks import TaskSpec

ArtifactKind = Literal["adapter", "model"]
"""What a training results in: a LoRA adapter of the base model, or a model of its own. Folders of the artifact store:
`adapters/<name>`, `models/<name>`."""


class AdapterTrained(Event):
    """A candidate was trained and published in the artifact store under an immutable name. Key: task."""

    adapter: AdapterName = Field(description="Immutable: task and content hash; also its name in vLLM.")
    kind: ArtifactKind = "adapter"
    uri: str = Field(max_length=2_000)
    base_model: Identifier
    dataset_id: Identifier
    dataset_uri: str = Field(max_length=2_000)
    method: Identifier
    rank: int | None = Field(default=None, ge=1, description="Of a LoRA adapter; None: a model.")
    steps: int = Field(ge=0, description="0: adapters were merged.")
    train_loss: float
    validation_loss: float | None = Field(default=None, description="On rows set aside; None: there were none.")
    seconds: float = Field(ge=0.0)
    data_cutoff: AwareDatetime
    spec: TaskSpec


class ClassScore(Frozen):
    label: Identifier
    precision: Probability
    recall: Probability
    f1: Probability
    support: int = Field(ge=0)
    precision_interval: Interval | None = None
    recall_interval: Interval | None = None
    f1_interval: Interval | None = None


class AverageScore(Frozen):
    """Precision, recall and F1 over the labels that occur: each the same (`macro`), by its rows (`weighted`), or, of
    answers with several, of all of them together (`micro`)."""

    kind: Literal["macro", "weighted", "micro"]
    precision: Interval
    recall: Interval
    f1: Interval


class ConfidenceScore(Frozen):
    """How well an arm's uncalibrated confidence tells its right answers from its wrong ones."""

    n: int = Field(ge=1)
    ece: Probability = Field(description="Expected calibration error, over 15 bins of equal size.")
    brier: Probability
    auroc: Interval | None = Field(
        default=None,
        description="The probability that an error has a lower score than a right answer. None: too few of either.",
    )


class ArmScore(Frozen):
    """The scores of one arm on the frozen evaluation set; those of each class are in the report, evaluation.json."""

    adapter: AdapterName | None
    accuracy: Interval
    score: Interval | None = Field(
        default=None, description="Mean score, in [0, 1]: of text and JSON that are partly right it is above accuracy."
    )
    traffic_accuracy: Interval | None = Field(
        default=None,
        description="Estimated accuracy on all traffic: of the rows that chance drew, each weighed by one over how "
        "probable it was that a person is asked about it. None: too few such rows.",
    )
    macro_f1: Probability
    averages: tuple[AverageScore, ...] = Field(default=(), max_length=10)
    function_accuracy: Interval | None = Field(
        default=None,
        description="Of calls: the share of answers that call the right functions, whatever the arguments.",
    )
    valid: Interval | None = Field(
        default=None,
        description="Of an extraction: the share of answers that are JSON by the task's schema; of calls: that can be "
        "run.",
    )
    confidence: ConfidenceScore | None = Field(default=None, description="None: the engine reports no confidence.")
    failed: int = Field(default=0, ge=0, description="Requests that errored or timed out: counted as wrong.")
    latency_ms_p50: float = Field(ge=0.0)
    latency_ms_p95: float = Field(default=0.0, ge=0.0)


class ScoreDifference(Frozen):
    """The candidate's mean score less production's on the same rows, with its 95 % interval and what that shows.

    `better` and `worse` are statements, each at 2.5 %. A candidate need not be better to be compared on live traffic.
    """

    value: float = Field(ge=-1.0, le=1.0)
    low: float = Field(ge=-1.0, le=1.0)
    high: float = Field(ge=-1.0, le=1.0)
    n: int = Field(ge=0)
    basis: Literal["rows", "traffic"] = Field(
        description="`traffic`: of rows that chance drew, weighed by how probable that was. `rows`: all as they are."
    )
    p_worse: Probability = Field(description='One-sided p-value of "not worse".')
    p_better: Probability = Field(description='One-sided p-value of "not better".')
    finding: Literal["better", "worse", "not_shown"]


class TextScore(Frozen):
    """Both arms' mean score of generated texts by one metric, in [0, 1], and their paired difference on all rows."""

    metric: TextMetric
    candidate: Interval
    production: Interval
    difference: ScoreDifference
    gates: bool = Field(description="By this one the candidate may not be worse (`evaluation.text_metric`).")


class LowConfidence(Frozen):
    """The confidence up to which answers are to be looked at, so that a wanted share of the errors is found.

    The threshold is conformal: of the adapter's wrong answers, a further one, drawn as those were that it was found
    from, lies at or below it with at least the probability `recall`; where reviewers err, as far as the estimate of
    their mistakes is right. How: services/evaluator/statistics.
    """

    threshold: Probability = Field(description="Of uncalibrated confidence.")
    calibrated: Probability | None = Field(default=None, description="The same, calibrated; None: no calibration.")
    recall: Probability = Field(description="`evaluation.low_confidence_recall` of the task at that time.")
    flagged: Probability = Field(description="Share of all answers at or below the threshold.")
    errors: int = Field(ge=1, description="Wrong answers that it was found from.")


CALIBRATIONS, CALIBRATION_FILE, OPINION_FILE = "calibrations", "calibration.json", "opinion.npz"
"""Where the artifact store has an adapter's calibration: the kind of artifact, and the file in its folder."""


class OpinionShare(Frozen):
    """A score's log-odds are `own` times the model's and `other` times those of the second opinion.

    Where it has none they are `own / other` times the model's.
    """

    own: float = Field(gt=0.0)
    other: float = Field(gt=0.0)


class Calibration(Frozen):
    """An adapter's map from its confidence score to how often such answers are right. Not of generated texts.

    It is fitted on the candidate's answers to the evaluation set and stored permanently in the artifact store, as
    `calibrations/<adapter>/calibration.json`. Its input is the score's log-odds x = ln(p / (1 - p)), cut at +-20.
    `temperature`: the calibrated log-odds are x / temperature. `isotonic`: the calibrated probability is interpolated
    linearly between neighbouring `knots`, and constant beyond the outermost. Both preserve the order of answers.
    """

    name: Identifier = Field(description="Derived from the adapter and the map.")
    kind: Literal["temperature", "isotonic"]
    temperature: float = Field(default=1.0, gt=0.0)
    knots: tuple[tuple[float, Probability], ...] = Field(
        default=(), max_length=200, description="Log-odds and probability, both ascending."
    )
    opinion: OpinionShare | None = Field(
        default=None,
        description="The share in the score of a second opinion on answers that are labels, `opinion.npz` beside this "
        "file. None: there is no such file.",
    )
    answers: int = Field(ge=1, description="How many answers it was fitted on.")
    mistakes: Probability = Field(default=0.0, description="Estimated share of reviewers' wrong labels.")
    ece_before: Probability = Field(description="Expected calibration error of these answers before calibration.")
    ece_after: Probability = Field(
        description="The same after calibration, cross-fitted: no answer is mapped by a fit that used it."
    )
    brier_before: Probability | None = None
    brier_after: Probability | None = Field(default=None, description="Cross-fitted, too.")
    basis: Literal["rows", "traffic"] = Field(
        default="rows",
        description="`traffic`: fitted on rows that chance drew, weighed by how probable that was. `rows`: on all.",
    )
    low_confidence: LowConfidence | None = Field(
        default=None, description="What low confidence is, found on the same answers; None: too few errors."
    )

    @model_validator(mode="after")
    def _preserves_order(self) -> Self:
        if self.kind == "isotonic" and len(self.knots) < 2:
            raise ValueError("an isotonic calibration needs at least two knots")
        for (left, low), (right, high) in pairwise(self.knots):
            if not (left < right and low <= high):
                raise ValueError(f"knots must ascend: {(left, low)} comes before {(right, high)}")
        return self


PROBES, PROBES_FILE = "probes", "probes.json"
"""Where the artifact store has an adapter's probes: the kind of artifact, and the file in its folder."""


class Probe(Frozen):
    """A prompt, and the likeliest first tokens of two models' answers to it with their log-probabilities in nats."""

    messages: Messages
    adapter: dict[str, float] = Field(min_length=1, max_length=100)
    base: dict[str, float] = Field(min_length=1, max_length=100)


class Probes(Frozen):
    """What an adapter and its base model answered at the adapter's evaluation: a replica that serves it must, too.

    Stored permanently in the artifact store, as `probes/<adapter>/probes.json`. The prompts are made of the task's own
    prompt and labels and of nobody's text, so that they outlive every erasure.
    """

    adapter: AdapterName
    base_model: Identifier
    probes: tuple[Probe, ...] = Field(min_length=1, max_length=20)
    rounding: float = Field(
        ge=0, description="Nats, the most by which the engine's answers to a probe alone and beside others differed."
    )


class EvaluationRequested(Event):
    """A candidate that waited for its turn is to be compared with the model that serves today. Key: task."""

    adapter: AdapterName
    uri: str = Field(max_length=2_000)
    base_model: Identifier
    dataset_id: Identifier
    dataset_uri: str = Field(max_length=2_000)
    data_cutoff: AwareDatetime
    against: AdapterName | None = Field(description="The adapter that serves; None: the base model.")
    spec: TaskSpec


class EvaluatedCandidate(Frozen):
    """What the event of an evaluation and its report say alike."""

    adapter: AdapterName
    base_model: Identifier
    dataset_id: Identifier
    dataset_uri: str = Field(max_length=2_000)
    verdict: Verdict
    gates: tuple[Gate, ...]
    texts: tuple[TextScore, ...] = Field(default=(), max_length=20, description="Of generated text, by each metric.")
    judge: JudgeReport | None = Field(default=None, description="None: the task has no judge.")
    calibration: Calibration | None = Field(
        default=None,
        description="The candidate's; None for a generation task or too few answers with a confidence.",
    )
    adversarial: AdversarialReport | None = Field(
        default=None,
        description="On changed, injected and foreign inputs; None: the task wants none, or no row served.",
    )
    headline: str = Field(
        default="", max_length=3_000, description="The verdict in a sentence, and whether a cheap rival does as well."
    )


class AdapterEvaluated(Event, EvaluatedCandidate):
    """A candidate was compared with production on the evaluation set; every gate has its verdict. Key: task.

    `inconclusive`: no gate stops it, and one could not be decided on so few rows (`Gate.labels_needed`). It goes on
    like one that passed: what nothing was shown against may prove itself on live traffic.
    """

    kind: ArtifactKind = Field(
        default="adapter", description="A model is served by name; no rollout moves users to it."
    )
    adapter_uri: str = Field(max_length=2_000)
    data_cutoff: AwareDatetime
    candidate: ArmScore
    production: ArmScore
    gain: ScoreDifference | None = None
    golden_lost: int = Field(default=0, ge=0, description="Rows that production answers right and the candidate not.")
    golden_gained: int = Field(default=0, ge=0)
    golden_total: int = Field(default=0, ge=0, description="Of them that are judged: see `evaluation.golden_score`.")
    approaches: ApproachTable | None = Field(
        default=None, description="Beside cheap rivals; None: evaluated before they were measured."
    )
    report: str | None = Field(
        default=None,
        max_length=2_000,
        description="Address of the folder with evaluation.json: classes, confusions, curves, every part.",
    )
    spec: TaskSpec
