"""How a step of the loop ends early."""

from __future__ import annotations

from typing import Any

from shared.errors import RatchetError


class StepTimeout(RatchetError):
    """A step took longer than the demonstration waits."""


class CycleStepFailed(RatchetError):
    """A service announced that its step cannot finish."""

    def __init__(self, event: dict[str, Any]) -> None:
        """`event`: of the topic `steps.failed`."""
        super().__init__(f"{event['service']} could not finish {event['step']}: {event['reason']}", event["way_out"])
        self.step = str(event["step"])
        self.report: str | None = event.get("report")
        """The folder of the inspection, where a gate of the data set stopped the cycle."""


class CandidateStopped(Exception):
    """The candidate or its dataset did not pass. Not a failure: stopping it is what the gates are for."""

    def __init__(self, by: str, evidence: str) -> None:
        super().__init__(f"{by}: {evidence}")
        self.by = by
        self.evidence = evidence
