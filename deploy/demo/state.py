"""What a turn of the wheel knows while it runs, and what it ends with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.demo.clients import Console, Gateway, Scheduler
from deploy.demo.data.split import Parts
from deploy.demo.pairs import PairLedger
from deploy.demo.report.measure import Measurement
from deploy.demo.reviewers import Reviewers
from deploy.demo.settings import LoopSettings
from deploy.demo.steps.cycle import StepLate
from deploy.demo.steps.rollback import Flags, Switched
from deploy.demo.terminal import Show
from schemas.tasks import TaskSpec


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    data: Path | None = None
    text: str = "text"
    label: str = "label"
    labels: int = 10
    corrections: int | None = None
    task_name: str | None = None
    report: Path = Path("report")
    shuffle_labels: bool = False
    wrong_share: float = 0.05
    disagree_share: float = 0.25
    prove_rollback: bool = False
    seed: int = 20


@dataclass
class Result:
    """How the turn ended. Filled step by step, so that a turn that breaks still has what came before."""

    task: str
    shuffled: bool = False
    promoted: bool = False
    stopped_by: str = ""
    evidence: str = ""
    before: Measurement | None = None
    after: Measurement | None = None
    cycle_id: str = ""
    modes: list[dict[str, Any]] = field(default_factory=list)
    dataset: dict[str, Any] | None = None
    rejected: dict[str, int] = field(default_factory=dict)
    rejected_examples: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    stage_labels: dict[str, int] = field(default_factory=dict)
    """Stage to the number of pair labels when it began: lines in the plot of the wealth."""
    canary_answers: int = 0
    switched: list[Switched] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Turn:
    """One turn, wired."""

    options: Options
    settings: LoopSettings
    show: Show
    spec: TaskSpec
    parts: Parts
    gateway: Gateway
    console: Console
    scheduler: Scheduler
    reviewers: Reviewers
    ledger: PairLedger
    flags: Flags
    result: Result
    background: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.settings.home / "logs" / "services.log"

    @property
    def where_to_look(self) -> str:
        return f"The services' log says why: {self.log}; `ratchet status` says who is up."

    def limit(self, seconds: float) -> float:
        """A step's time limit on this machine."""
        return seconds * self.settings.loop_patience

    def late(self, what: str, seconds: float) -> StepLate:
        """The error of a step that took longer than `limit(seconds)`."""
        return StepLate(
            f"{what} in {self.limit(seconds):.0f} s",
            f"{self.where_to_look} On a slow machine: RATCHET_LOOP_PATIENCE=3 ratchet loop …",
        )

    def check_background(self) -> None:
        """Raise what a background actor died of, so that a turn does not wait for people who have left."""
        for task in self.background:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error
