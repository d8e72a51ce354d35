"""What an operator can set of dataset_builder."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class DatasetBuilderSettings(Settings):
    dataset_builder_batch: int = Field(default=500, ge=1, description="Maximum number of corrections stored at once.")
    dataset_builder_traffic_hours: int = Field(
        default=24, ge=1, description="Hours of production answers that the labels are compared with."
    )
