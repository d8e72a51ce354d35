"""What an operator can set of dataset_builder."""

from __future__ import annotations

from pathlib import Path

from shared.settings import Settings


class DatasetBuilderSettings(Settings):
    @property
    def jobs_folder(self) -> Path:
        return self.home / "jobs" / "dataset_builder"

    @property
    def slots_folder(self) -> Path:
        return self.home / "slots" / "dataset_builder"
