"""What an operator can set of dataset_builder."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shared.settings import Settings


class DatasetBuilderSettings(Settings):
    dataset_builder_batch: int = Field(default=500, ge=1, description="Maximum number of corrections stored at once.")
    dataset_builder_traffic_hours: int = Field(
        default=24, ge=1, description="Hours of production answers that the labels are compared with."
    )
    dataset_builder_feedback_patience_seconds: float = Field(
        default=240.0, gt=0.0, description="How long feedback waits for its prediction to be in the lake."
    )

    dataset_builder_embedder: str = Field(default="all-MiniLM-L6-v2", description="Folder below <home>/models.")

    @property
    def jobs_folder(self) -> Path:
        return self.home / "jobs" / "dataset_builder"

    @property
    def slots_folder(self) -> Path:
        return self.home / "slots" / "dataset_builder"
