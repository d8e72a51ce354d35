"""How a loop ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.demo.report.measure import Measurement
from deploy.demo.settings import Fault
from schemas.approaches import ApproachTable
from schemas.base import CheckResult
from schemas.quality import QualityReport


@dataclass
class LearningCycle:
    """What the cycle's steps announced, as events."""

    cycle_id: str = ""
    modes: list[dict[str, Any]] = field(default_factory=list)
    dataset: dict[str, Any] | None = None
    inspection: QualityReport | None = None
    """Of the data set, also of one that a gate stopped; None: there was none, or it is out of this machine's reach."""
    inspection_page: Path | None = None
    training: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    evaluation_page: Path | None = None
    """The page with everything behind the evaluation; None: there was none, or it is out of this machine's reach."""

    @property
    def approaches(self) -> ApproachTable | None:
        """The adapter beside cheap rivals; None: there was no evaluation."""
        table = (self.evaluation or {}).get("approaches")
        return None if table is None else ApproachTable.model_validate(table)


@dataclass
class LiveTest:
    """The candidate's rollout on live traffic. `changes`: its events."""

    changes: list[dict[str, Any]] = field(default_factory=list)
    labels_at_stage: dict[str, int] = field(default_factory=dict)
    """Stage → the number of pair labels when it began."""
    canary_answers: int = 0


@dataclass
class LoopResult:
    """How a loop ended. Filled step by step, so that a loop that fails still reports the steps before."""

    task: str
    fault: Fault | None = None
    promoted: bool = False
    stopped_by: str = ""
    evidence: str = ""
    before: Measurement | None = None
    after: Measurement | None = None
    cycle: LearningCycle = field(default_factory=LearningCycle)
    live_test: LiveTest = field(default_factory=LiveTest)
    seconds: float = 0.0

    @property
    def as_expected(self) -> bool:
        """A good candidate is promoted; a data set with a fault is stopped by a gate that names the fault."""
        if self.fault is None:
            return self.promoted
        inspection = self.cycle.inspection
        failed = (
            {check.name for check in inspection.checks if check.result is CheckResult.FAILED} if inspection else set()
        )
        return not self.promoted and not failed.isdisjoint(self.fault.gates)
