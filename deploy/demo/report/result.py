"""How a loop ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.demo.report.measure import Measurement
from deploy.demo.settings import Fault
from schemas.adversarial import AdversarialReport
from schemas.approaches import ApproachTable
from schemas.base import CheckResult, Interval
from schemas.quality import QualityReport

MAX_SWITCH_SECONDS = 3.0


@dataclass(frozen=True)
class FlagMove:
    """A flag that was switched by hand: which, what served afterwards, and how soon."""

    move: str
    variant: str
    adapter: str
    seconds: float

    @property
    def in_time(self) -> bool:
        return self.seconds <= MAX_SWITCH_SECONDS


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

    @property
    def adversarial(self) -> AdversarialReport | None:
        """Both arms on inputs that mislead; None: there was no evaluation, or the task wants no such inputs."""
        report = (self.evaluation or {}).get("adversarial")
        return None if report is None else AdversarialReport.model_validate(report)


@dataclass
class LiveTest:
    """The candidate's rollout on live traffic. `changes`: its events."""

    changes: list[dict[str, Any]] = field(default_factory=list)
    labels_at_stage: dict[str, int] = field(default_factory=dict)
    """Stage → the number of pair labels when it began."""
    canary_answers: int = 0


@dataclass(frozen=True)
class NextTurn:
    """A turn after the first. `serves`: the adapter that served before and after the restart; `seconds` by step."""

    number: int
    serves: str
    result: LoopResult
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def opponent(self) -> str | None:
        """With what the candidate was compared; None: the base model, or nothing, since no verdict came."""
        evaluation = self.result.cycle.evaluation
        return None if evaluation is None else evaluation["production"]["adapter"]

    @property
    def as_expected(self) -> bool:
        return self.opponent == self.serves

    @property
    def verdict(self) -> str:
        """With whom the candidate was compared, and how that ended, for people."""
        result = self.result
        if (evaluation := result.cycle.evaluation) is None:
            return f"turn {self.number}: nothing was compared: stopped by {result.stopped_by}"
        serves = "which serves" if self.as_expected else f"but {self.serves} serves"
        stopped = f"stopped by {result.stopped_by}" if result.stopped_by else "past its offline gates"
        ended = "promoted" if result.promoted else stopped
        candidate, opponent = evaluation["candidate"]["adapter"], self.opponent or "the base model"
        return f"turn {self.number}: {candidate} was compared with {opponent}, {serves}: {ended}"


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
    bag_of_words: Interval | None = None
    """Accuracy of a bag-of-words classifier that was trained on the same rows as the adapter."""
    cycle: LearningCycle = field(default_factory=LearningCycle)
    live_test: LiveTest = field(default_factory=LiveTest)
    flag_moves: list[FlagMove] = field(default_factory=list)
    turns: list[NextTurn] = field(default_factory=list)
    """Those after the first, which this is."""
    seconds: float = 0.0

    @property
    def as_expected(self) -> bool:
        """A good candidate is promoted; a data set with a fault is stopped by a gate that names the fault.

        In each further turn the candidate is compared with the adapter that serves, whatever comes of it.
        """
        if self.fault is None:
            return self.promoted and all(turn.as_expected for turn in self.turns)
        inspection = self.cycle.inspection
        failed = (
            {check.name for check in inspection.checks if check.result is CheckResult.FAILED} if inspection else set()
        )
        return not self.promoted and not failed.isdisjoint(self.fault.gates)
