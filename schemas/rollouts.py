"""Events about rollouts: shadow pairs as evidence, and which adapter serves."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from schemas.base import Event, Frozen, Identifier
from schemas.conversation import Answer, Call
from schemas.tasks import TaskSpec


class ShadowCompared(Event):
    """An eligible pair was made: production's and the candidate's answer to the same live input. Key: prediction_id."""

    pair_id: Identifier
    rollout_id: Identifier
    prediction_id: Identifier
    call: Call
    production_adapter: Identifier | None
    candidate_adapter: Identifier
    production_answer: Answer
    candidate_answer: Answer | None = Field(description="None: the candidate failed or timed out: a loss.")
    agree: bool
    user_hash: Identifier | None = None
    logged_at: AwareDatetime
    candidate_latency_ms: float = Field(ge=0.0)


class Stage(StrEnum):
    SHADOW = "shadow"
    CANARY = "canary"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"


class Evidence(Frozen):
    """The counts behind a decision. `wealth` was computed from the ordered outcomes, not from these counts."""

    wins: int = Field(default=0, ge=0)
    ties: int = Field(default=0, ge=0, description="Pairs that agree, or whose answers are both right or both wrong.")
    losses: int = Field(default=0, ge=0)
    pending: int = Field(default=0, ge=0, description="Tickets without a label: counted as losses.")
    wealth: float = Field(default=1.0, ge=0.0)
    alpha: float = Field(gt=0.0, lt=1.0)
    canary_requests: int = Field(default=0, ge=0)
    canary_errors: int = Field(default=0, ge=0)


class RolloutChanged(Event):
    """A candidate's stage or the serving adapter changed. Compacted: the last value per task holds. Key: task."""

    rollout_id: Identifier
    stage: Stage
    primary_adapter: Identifier | None = Field(description="The adapter that serves everyone; None: the base model.")
    previous_adapter: Identifier | None = None
    candidate_adapter: Identifier
    candidate_uri: str = Field(max_length=2_000)
    dataset_uri: str = Field(max_length=2_000, description="The candidate's training rows, to detect near-duplicates.")
    data_cutoff: AwareDatetime
    evidence: Evidence
    reason: str = Field(max_length=2_000)
    spec: TaskSpec
