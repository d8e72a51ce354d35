"""What an operator can set of failure_miner."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class FailureMinerSettings(Settings):
    failure_miner_batch: int = Field(default=256, ge=1, description="Maximum number of predictions embedded at once.")
    failure_miner_embedder: str = Field(
        default="all-MiniLM-L6-v2",
        description="Folder below <home>/models. Failure modes of another one's vectors are not found again.",
    )
    failure_miner_max_suspects: int = Field(
        default=20_000, ge=10, description="Maximum number of suspects that a cycle clusters; the newest are taken."
    )
    failure_miner_feedback_patience_seconds: float = Field(
        default=240.0,
        gt=0.0,
        description="How long feedback waits for its prediction to be in the lake.",
    )
