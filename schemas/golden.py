"""Golden sets: examples that every candidate is asked and that nobody trains on. A set is a folder of artifacts.

    golden/<set_id>/golden.jsonl    one `GoldenRow` a line, sorted by row_id
    golden/<set_id>/manifest.json   `GoldenManifest`

A set is named after its rows and never changed: a task whose golden file changes gets another set.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import Self

from pydantic import AwareDatetime, Field, JsonValue, model_validator

from schemas.base import Frozen, Identifier, TaskName
from schemas.conversation import JsonObject, Messages, Role

GOLDEN = "golden"
"""The kind of these folders in the artifact store."""
GOLDEN_ROWS = "golden.jsonl"


class GoldenPart(StrEnum):
    """What a row is there to notice."""

    KEPT = "kept"
    """The base, asked twice, gets it right: what fine-tuning must not forget."""
    SAMPLE = "sample"
    """Chosen without a look at any model's answer: how good a model is."""


class GoldenRow(Frozen):
    """One line of golden.jsonl. `messages` ends with the assistant's answer, and has no system prompt of the task."""

    row_id: Identifier = Field(description="Hash of what is asked: the same question has the same id.")
    messages: Messages
    tools: tuple[JsonObject, ...] = Field(default=(), description="The tools that the model can call.")
    tool_choice: JsonValue = Field(default=None, description="Which of them must be called. None: any, or none.")
    response_format: JsonObject | None = Field(
        default=None, description="The JSON that the application asks for, as in OpenAI's chat API. None: the task's."
    )
    part: GoldenPart = GoldenPart.SAMPLE
    must_pass: bool = Field(default=False, description="A candidate that gets it wrong, twice, is stopped.")
    prediction_id: Identifier | None = Field(default=None, description="The prediction that it was made from.")
    user_hash: Identifier | None = Field(default=None, description="Of the prediction's user, for erasure.")
    author_hash: Identifier | None = Field(default=None, description="Of another user whose words the answer may be.")
    predicted_at: AwareDatetime | None = None

    @property
    def prompt(self) -> Messages:
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return self.messages[-1].text

    def is_of(self, subjects: Collection[str], until: datetime) -> bool:
        """Return True if one of these people asked it, or may have worded its answer, up to a moment."""
        is_theirs = self.user_hash in subjects or self.author_hash in subjects
        return is_theirs and (self.predicted_at is None or self.predicted_at <= until)

    @model_validator(mode="after")
    def _asks_and_answers(self) -> Self:
        if not any(message.role == Role.USER and message.text.strip() for message in self.prompt):
            raise ValueError("nothing is asked: expected a message of the user with a text before the answer")
        if self.messages[-1].role != Role.ASSISTANT or not self.answer.strip():
            raise ValueError("there is no answer: expected a last message of the assistant with a text or tool calls")
        return self


class GoldenSet(Frozen):
    """A golden set by its name: the rows are in the artifact store, because they are too many for an event."""

    set_id: Identifier = Field(description="Task and content hash: the same rows get the same id.")
    rows: int = Field(ge=1)
    must_pass: int = Field(default=0, ge=0, description="How many of them a candidate must get right.")


class GoldenManifest(GoldenSet):
    """manifest.json: what the set is of."""

    task: TaskName
    parts: dict[GoldenPart, int] = Field(description="Rows in each part.")
    files: dict[str, str] = Field(description="File name to SHA-256.")
