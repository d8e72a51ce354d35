"""Events about the weekly cycle: its start, its end, and steps that progress or fail."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import AwareDatetime, Field

from schemas.base import Event, Frozen, Identifier, Probability


class PartitionFence(Frozen):
    """The end of a cycle's inputs in one partition: records below `offset` belong to the cycle."""

    topic: Identifier
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)


Fence = tuple[PartitionFence, ...]

Step = Literal["failures", "dataset", "training", "evaluation", "rollout"]


class CycleStarted(Event):
    """A cycle started. The fence makes its inputs the same whenever its steps run. Key: task."""

    trigger: Literal["cron", "command"]
    data_cutoff: AwareDatetime = Field(description="Predictions logged after it may judge the cycle's candidate.")
    fence: Fence = Field(default=(), max_length=1_000)


class CycleFinished(Event):
    """A cycle ended: its candidate was promoted or not, a step failed, or there was too little new. Key: task."""

    outcome: Literal["promoted", "rejected", "inconclusive", "failed", "skipped"]
    reason: str = Field(max_length=2_000)
    adapter: Identifier | None = None
    seconds: float = Field(ge=0.0)
    ended_by: UUID | None = Field(
        default=None,
        description="Id of the event that ended it: of another topic, it may be read later. None: an operator did.",
    )


class StepProgressed(Event):
    """A long step reported its progress: for progress bars, and to distinguish slow from stalled. Key: task."""

    step: Step
    done: float = Field(ge=0.0)
    total: float = Field(gt=0.0)
    message: str = Field(default="", max_length=500)
    loss: float | None = Field(
        default=None, description="Of a training, at `done` steps: mean per answer token in nats."
    )
    validation_loss: float | None = Field(default=None, description="The last that was measured on rows set aside.")


class StepFailed(Event):
    """A step failed. Without this event a failure would look like a stall. Key: task."""

    service: Identifier
    step: Step
    reason: str = Field(max_length=4_000)
    way_out: str = Field(max_length=2_000, description="What an operator does next.")
    progress: Probability | None = None
    skipped: bool = Field(default=False, description="Nothing is wrong: there was too little new to learn from.")
    report: str | None = Field(
        default=None, max_length=2_000, description="Address of the folder with quality.json, where a gate stopped it."
    )
    failed_event: UUID | None = Field(default=None, description="Id of the event that asked for what failed.")
