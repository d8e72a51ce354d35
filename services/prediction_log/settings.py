"""The settings of prediction_log."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class PredictionLogSettings(Settings):
    prediction_log_batch: int = Field(
        default=20_000, ge=1, description="Maximum records in one Delta commit; 32 MiB of them."
    )
    prediction_log_wait_ms: int = Field(default=250, ge=10, description="Maximum wait for a batch to fill.")
    prediction_log_window: int = Field(
        default=1_000_000, ge=1_000, description="Newest ids held in memory to find duplicates; 16 bytes each."
    )
    prediction_log_roll_up_seconds: float = Field(default=120.0, gt=0.0, description="Interval between roll-ups.")
    prediction_log_maintenance_seconds: float = Field(
        default=600.0, gt=0.0, description="Interval between rounds of compaction, vacuum, retention and erasure."
    )
    prediction_log_small_files: int = Field(
        default=30, ge=2, description="Small files of a task's day that trigger its compaction."
    )
    prediction_log_file_bytes: int = Field(
        default=128 * 1024 * 1024,
        ge=1024 * 1024,
        description="Size of a compacted file; a file below half of it is small. Files of large rows become smaller: "
        "256 MiB uncompressed, so that an erasure can hold them in memory.",
    )
    prediction_log_grace_hours: int = Field(
        default=1, ge=0, le=4, description="A replaced file is deleted after so long, so that its readers can finish."
    )
    prediction_log_orphan_hours: int = Field(
        default=24, ge=24, description="A file that no commit names is left by a crash and is deleted at this age."
    )
