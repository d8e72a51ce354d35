"""What every event has in common, and the small types the families share.

Events are frozen facts in the past tense. Adding an optional field keeps the version; anything else is a new
class and a new topic. A consumer ignores fields it does not know, so that a producer may be upgraded first.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID, uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

MAX_TEXT = 32_000
"""Longest text, in characters, that an event carries; the gateway refuses longer bodies at the door."""

TaskName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""Lower case, digits and dashes: it becomes part of flag names, folders and adapter names."""
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


def utc_now() -> datetime:
    """Now, with the time zone in it: a naive time never enters an event."""
    return datetime.now(UTC)


class Frozen(BaseModel):
    """A value inside an event."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(Frozen):
    """The envelope: which fact, when, about which task and which revision of it."""

    event_id: UUID = Field(default_factory=uuid4, description="Same fact, same id: consumers deduplicate by it.")
    occurred_at: AwareDatetime = Field(default_factory=utc_now)
    task: TaskName
    task_revision: Identifier = Field(
        description="Hash of what makes data comparable: prompt, labels, base model. Revisions are never mixed."
    )
    cycle_id: Identifier | None = Field(default=None, description="The weekly cycle that this belongs to, if any.")


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Message(Frozen):
    """One chat message. Content is text; other modalities are a new version of the contract."""

    role: Role
    content: Text


Messages = Annotated[tuple[Message, ...], Field(min_length=1, max_length=64)]


def input_text(messages: tuple[Message, ...]) -> str:
    """What was asked: all but the system prompt, which is the same in every input of a task. For comparing inputs."""
    return "\n".join(message.content for message in messages if message.role is not Role.SYSTEM)


class Variant(StrEnum):
    """Which arm of the rollout answered."""

    BASE = "base"
    PRIMARY = "primary"
    CANARY = "canary"
    ROLLBACK = "rollback"
    EXTERNAL = "external"


class Gate(Frozen):
    """One condition that data or a candidate had to meet, with what was measured."""

    name: Identifier
    passed: bool
    measured: float | None = None
    required: str = Field(description="The bar in words, e.g. `>= 0.05`.", max_length=200)
    detail: str = Field(default="", max_length=2_000)


class Interval(Frozen):
    """A proportion with its 95 % Wilson interval."""

    value: Probability
    low: Probability
    high: Probability
    n: int = Field(ge=0)


Verdict = Literal["passed", "failed"]
