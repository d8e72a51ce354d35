"""The settings of prediction_log."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class PredictionLogSettings(Settings):
    prediction_log_maintenance_seconds: float = Field(
        default=600.0,
        gt=0.0,
        description="Interval between rounds of compaction, vacuum, retention and erasure. Roll-ups are made "
        "five times as often.",
    )
    prediction_log_grace_hours: int = Field(
        default=1, ge=0, le=4, description="A replaced file is deleted after so long, so that its readers can finish."
    )
