"""Shadow pairs and rollouts: the live proof, and who serves."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from schemas.base import Event, Frozen, Identifier, Messages, Text
from schemas.tasks import TaskSpec


class ShadowCompared(Event):
    """One eligible pair: production's answer and the candidate's on the same live input. Key: prediction_id."""

    pair_id: Identifier
    rollout_id: Identifier
    prediction_id: Identifier
    messages: Messages
    production_adapter: Identifier | None
    candidate_adapter: Identifier
    production_answer: Text
    candidate_answer: Text | None = Field(description="None: the candidate erred or timed out, which is a loss.")
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
    """What the betting test saw when it decided. Wealth is recomputed from these counts alone."""

    wins: int = Field(default=0, ge=0)
    ties: int = Field(default=0, ge=0, description="Pairs that agree, or that are both right or both wrong.")
    losses: int = Field(default=0, ge=0)
    pending: int = Field(default=0, ge=0, description="Tickets without a label: counted as losses.")
    wealth: float = Field(default=1.0, ge=0.0)
    alpha: float = Field(gt=0.0, lt=1.0)
    canary_requests: int = Field(default=0, ge=0)
    canary_errors: int = Field(default=0, ge=0)


class RolloutChanged(Event):
    """Where a candidate stands and who serves. Compacted: the last value per task is the truth. Key: task."""

    rollout_id: Identifier
    stage: Stage
    primary_adapter: Identifier | None = Field(description="Who serves everyone now; None: the base model.")
    previous_adapter: Identifier | None = None
    candidate_adapter: Identifier
    candidate_uri: str = Field(max_length=2_000)
    dataset_uri: str = Field(max_length=2_000, description="The candidate's training rows, to tell near-copies.")
    data_cutoff: AwareDatetime
    evidence: Evidence
    reason: str = Field(max_length=2_000)
    spec: TaskSpec
