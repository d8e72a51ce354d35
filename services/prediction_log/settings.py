"""What an operator can set of prediction_log."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class PredictionLogSettings(Settings):
    prediction_log_batch: int = Field(default=5_000, ge=1, description="Most records in one Delta commit.")
    prediction_log_wait_ms: int = Field(default=500, ge=10, description="Longest wait for a batch to fill.")
    prediction_log_roll_up_seconds: float = Field(default=120.0, gt=0.0, description="Between two roll-ups.")
    prediction_log_roll_up_hours: int = Field(default=3, ge=1, description="Hours restated, for late rows.")
