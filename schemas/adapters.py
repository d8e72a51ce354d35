"""Adapters: what was trained, and how it compares with production before it sees live traffic."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from schemas.base import Event, Frozen, Gate, Identifier, Interval, Probability, Verdict
from schemas.tasks import TaskSpec


class AdapterTrained(Event):
    """A LoRA adapter is in the artifact store under an immutable name. Key: task."""

    adapter: Identifier = Field(description="Immutable: task and content hash; also its name in vLLM.")
    uri: str = Field(max_length=2_000)
    base_model: Identifier
    dataset_id: Identifier
    dataset_uri: str = Field(max_length=2_000)
    method: Identifier
    rank: int = Field(ge=1)
    steps: int = Field(ge=1)
    train_loss: float
    seconds: float = Field(ge=0.0)
    data_cutoff: AwareDatetime
    spec: TaskSpec


class ClassScore(Frozen):
    label: Identifier
    precision: Probability
    recall: Probability
    f1: Probability
    support: int = Field(ge=0)


class ArmScore(Frozen):
    """One arm on the frozen evaluation set."""

    adapter: Identifier | None
    accuracy: Interval
    macro_f1: Probability
    classes: tuple[ClassScore, ...] = Field(default=(), max_length=500)
    failed: int = Field(default=0, ge=0, description="Requests that errored or timed out: counted as wrong.")
    latency_ms_p50: float = Field(ge=0.0)


CALIBRATIONS, CALIBRATION_FILE = "calibrations", "calibration.json"
"""Where an adapter's calibration lies in the artifact store: the kind of artifact, and the file in its folder."""


class Calibration(Frozen):
    """An adapter's map from how sure it says it is to how often it then is right. Classification only.

    It is fitted on the candidate's answers to the evaluation set and lies beside the adapter in the artifact store, as
    `calibrations/<adapter>/calibration.json`, for good. The score's log-odds x = ln(p / (1 - p)), cut at +-20, go in.
    `temperature`: the calibrated log-odds are x / temperature. `isotonic`: the calibrated probability lies on the
    straight line between neighbouring `knots`, and beyond the last ones it stays. Both keep the order of answers.
    """

    name: Identifier = Field(description="Follows from the adapter and the map.")
    kind: Literal["temperature", "isotonic"]
    temperature: float = Field(default=1.0, gt=0.0)
    knots: tuple[tuple[float, Probability], ...] = Field(
        default=(), max_length=200, description="Log-odds and probability, both ascending."
    )
    answers: int = Field(ge=1, description="How many answers it was fitted on.")
    mistakes: Probability = Field(default=0.0, description="Share of the judgements taken to be mistakes of people.")
    ece_before: Probability = Field(description="Expected calibration error of these answers as they were.")
    ece_after: Probability = Field(
        description="The same, each answer mapped, and the mistakes expected, by a fit that had not seen it."
    )

    @model_validator(mode="after")
    def _keeps_the_order(self) -> Self:
        if self.kind == "isotonic" and len(self.knots) < 2:
            raise ValueError("an isotonic calibration needs two knots at least")
        for (left, low), (right, high) in pairwise(self.knots):
            if not (left < right and low <= high):
                raise ValueError(f"knots must ascend: {(left, low)} comes before {(right, high)}")
        return self


class AdapterEvaluated(Event):
    """Candidate and production side by side, with every gate's verdict. Key: task."""

    adapter: Identifier
    adapter_uri: str = Field(max_length=2_000)
    base_model: Identifier
    dataset_id: Identifier
    dataset_uri: str = Field(max_length=2_000)
    data_cutoff: AwareDatetime
    verdict: Verdict
    gates: tuple[Gate, ...]
    candidate: ArmScore
    production: ArmScore
    golden_lost: int = Field(default=0, ge=0)
    golden_gained: int = Field(default=0, ge=0)
    golden_total: int = Field(default=0, ge=0)
    calibration: Calibration | None = Field(
        default=None, description="The candidate's; None: a generation, or too few answers with a confidence."
    )
    spec: TaskSpec
