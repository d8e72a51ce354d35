"""The base class of all events, and the small types that the families of events share.

Events are frozen and named in the past tense. Adding an optional field keeps the version; any other change needs a new
class and a new topic. A consumer ignores fields it does not know, so that a producer may be upgraded first.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID, uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

MAX_EVENT_BYTES = 2 * 1024 * 1024
"""What an event may have of texts, as JSON, unless a setting allows more. Whoever makes an event cuts it to fit."""
MAX_TEXT = 3 * 1024 * 1024
"""Maximum characters of one text in an event. Not what fits: the total is limited, in bytes (MAX_EVENT_BYTES)."""
MAX_SHORT_TEXT = 32_000

TASK_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
"""The form of a task's name."""
TaskName = Annotated[str, StringConstraints(pattern=TASK_NAME)]
"""Lower case, digits and dashes: it becomes part of flag names, folders and adapter names."""
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=120, strip_whitespace=True)]
AdapterName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
"""A folder's name and a model's in the engine, so never a path."""
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
ShortText = Annotated[str, StringConstraints(max_length=MAX_SHORT_TEXT)]
"""A text that a person writes into a setting, or one of many in an event."""
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
MAX_COUNT = 2**31 - 1
"""The lake's columns, and every database's, hold it."""
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
"""A number of tokens and the like in an event."""


def utc_now() -> datetime:
    """Return the current time with its time zone: events have no naive times."""
    return datetime.now(UTC)


class Frozen(BaseModel):
    """The base class of values inside an event."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(Frozen):
    """The base class of events, with their envelope: id, time, task and task revision."""

    event_id: UUID = Field(default_factory=uuid4, description="Same event, same id: consumers deduplicate by it.")
    occurred_at: AwareDatetime = Field(default_factory=utc_now)
    task: TaskName
    task_revision: Identifier = Field(
        description="Hash of what makes data comparable: prompt, labels, base model. What is measured is of one."
    )
    cycle_id: Identifier | None = Field(default=None, description="The weekly cycle that the event belongs to, if any.")


class Variant(StrEnum):
    """The role in which an arm answered."""

    BASE = "base"
    PRIMARY = "primary"
    CANARY = "canary"
    ROLLBACK = "rollback"
    EXTERNAL = "external"


class CheckResult(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """There are too few data to tell. It stops nothing, and the detail says what is needed to know."""


class Gate(Frozen):
    """One condition that data or a candidate had to meet, with what was measured.

    A gate that could not measure anything (`measured` is None) stops nothing: it is unknown, and `passed` is true.
    """

    name: Identifier
    passed: bool
    measured: float | None = None
    required: str = Field(description="The threshold in words, e.g. `>= 0.05`.", max_length=200)
    detail: str = Field(default="", max_length=2_000)
    labels_needed: int | None = Field(
        default=None, ge=1, description="Of an unknown gate: so many more labelled rows would decide it."
    )

    @property
    def result(self) -> CheckResult:
        if not self.passed:
            return CheckResult.FAILED
        return CheckResult.UNKNOWN if self.measured is None else CheckResult.PASSED


class Interval(Frozen):
    """A proportion, or a mean in [0, 1], with its 95 % interval. `n`: the rows it is of."""

    value: Probability
    low: Probability
    high: Probability
    n: int = Field(ge=0)


Verdict = Literal["passed", "failed", "inconclusive"]
