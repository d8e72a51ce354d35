"""What an operator can set of the scheduler."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shared.settings import Settings


class SchedulerSettings(Settings):
    scheduler_host: str = Field(default="127.0.0.1", description="Address to listen on.")
    scheduler_port: int = Field(default=28091, ge=1, le=65_535, description="Port to listen on.")
    scheduler_tasks: Path | None = Field(default=None, description="Folder of task files; unset: <home>/tasks.")

    @property
    def tasks_folder(self) -> Path:
        return self.scheduler_tasks or self.home / "tasks"
