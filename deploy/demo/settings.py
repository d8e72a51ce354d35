"""What the user asked for, where the services are, and the time limits on a slow machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from shared.settings import Settings


class LoopSettings(Settings):
    """What `ratchet loop` needs to know beyond the stack."""

    gateway_port: int = 28080
    console_port: int = 28090
    scheduler_port: int = 28091
    loop_time_limit_factor: float = Field(default=1.0, gt=0.0, description="Factor of every time limit of the loop.")

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def console_url(self) -> str:
        return f"http://127.0.0.1:{self.console_port}"

    @property
    def scheduler_url(self) -> str:
        return f"http://127.0.0.1:{self.scheduler_port}"


@dataclass(frozen=True)
class DataOptions:
    """The CSV file to use and how much of it. Without a path: the shipped support desk."""

    path: Path | None = None
    text_column: str = "text"
    label_column: str = "label"
    max_labels: int = 10
    max_corrections: int | None = None
    """Per label; None: as many as suit the number of labels."""


@dataclass(frozen=True)
class PlannedMistakes:
    """How often simulated reviewers err on purpose, as shares of their answers."""

    wrong_share: float = 0.05
    disagree_share: float = 0.25
    """Of the questions put to a second person, those that this person answers differently."""
    seed: int = 20


@dataclass(frozen=True)
class LoopOptions:
    """What the user asked for on the command line."""

    data: DataOptions = field(default_factory=DataOptions)
    mistakes: PlannedMistakes = field(default_factory=PlannedMistakes)
    task_name: str | None = None
    report: Path = Path("report")
    shuffle_labels: bool = False
    prove_rollback: bool = False

    @property
    def seed(self) -> int:
        """Of everything drawn at random: the split, the shuffled labels and the mistakes."""
        return self.mistakes.seed
