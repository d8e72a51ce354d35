"""Adapters: what was trained, and how it compares with production before it sees live traffic."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

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
    spec: TaskSpec
