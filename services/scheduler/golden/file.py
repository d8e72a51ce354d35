"""Reads and writes a task's golden file: JSON lines, each a question with its right answer.

    {"text": "Where is my parcel?", "label": "delivery", "part": "sample", "must_pass": true}
    {"text": "Late, and broken!", "label": ["delivery", "damage"]}
    {"messages": [{"role": "user", "content": "…"}, …, {"role": "assistant", "content": "…"}], "tools": […]}

Messages are as in schemas/conversation.py. An error names the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue, ValidationError, model_validator

from schemas.base import MAX_SHORT_TEXT, Identifier, ShortText
from schemas.conversation import JsonObject, Message, Messages, Role
from schemas.golden import GoldenPart, GoldenRow
from schemas.tasks import TaskSpec
from shared.answers import answer_form
from shared.conversation import chat_messages
from shared.errors import ConfigurationError, describe_validation_error
from shared.identity import content_hash

MAX_BYTES = 100_000_000
MAX_ROWS = 50_000
"""Every evaluation asks two models each of them."""
EXPECTED = 'expected {"text": "…", "label": "…"} or {"messages": […]}'
_WAY_OUT = "docs/evaluation.md, `The golden set`, shows what a line may have."
UNREADABLE_WAY_OUT = "Look for a mistake in its path, and whether this user can read it."
_SHOWN_CHARACTERS = 77


class GoldenLine(BaseModel):
    """A row as people write it: `text` and `label`, or `messages` that end with the assistant's answer.

    `label` of a multi-label task is a list.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: ShortText | None = None
    label: ShortText | tuple[ShortText, ...] | None = None
    messages: Messages | None = None
    tools: tuple[JsonObject, ...] = ()
    tool_choice: JsonValue = None
    response_format: JsonObject | None = None
    part: GoldenPart = GoldenPart.SAMPLE
    must_pass: bool = False
    prediction_id: Identifier | None = None
    user_hash: Identifier | None = None
    author_hash: Identifier | None = None
    predicted_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.messages is None) != (self.text is not None and self.label is not None):
            raise ValueError("found neither or both of `text` with `label`, and `messages`")
        return self

    def row(self, spec: TaskSpec) -> GoldenRow:
        """Return the row of the golden set. Raises ValueError for one that cannot be asked or has a wrong label."""
        label = json.dumps(self.label, ensure_ascii=False) if isinstance(self.label, tuple) else self.label
        messages = self.messages or _plain_messages(self.text, label)
        if messages[0] == Message(role=Role.SYSTEM, content=spec.system_prompt):
            messages = messages[1:]  # It is asked with the prompt that the task has then.
        answer = messages[-1].text
        form = answer_form(spec)
        if (known := form.renamed(answer)) != answer:
            messages = (*messages[:-1], Message(role=Role.ASSISTANT, content=known))
        row = GoldenRow(
            row_id=row_id(messages[:-1], self.tools),
            messages=messages,
            **self.model_dump(exclude={"text", "label", "messages"}),
        )
        chat_messages(row.messages)  # Raises ValueError for pictures and the like.
        if (problem := form.problem(row.answer)) is not None:
            raise ValueError(f"label: {problem}")
        return row


def row_id(prompt: Iterable[Message], tools: Iterable[JsonObject]) -> str:
    """Return the id of a question: the same for the same messages and tools."""
    question = GoldenQuestion(messages=tuple(prompt), tools=tuple(tools))
    return f"g-{content_hash(question.model_dump_json(exclude_defaults=True))}"


class GoldenQuestion(BaseModel):
    """What the id of a row is the hash of."""

    messages: tuple[Message, ...]
    tools: tuple[JsonObject, ...] = ()


def read_golden_file(path: Path, spec: TaskSpec) -> tuple[GoldenRow, ...]:
    """Return the rows of a golden file in their order. Raises ConfigurationError, also if it cannot be read."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigurationError(f"{path}: found more than {MAX_BYTES:,} bytes; expected fewer", _WAY_OUT)
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror})", UNREADABLE_WAY_OUT) from error
    rows: dict[str, GoldenRow] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _parse(line, spec)
        except ValueError as error:
            raise ConfigurationError(f"{path}:{number}: {_problem(error, line)}", _WAY_OUT) from error
        if row.row_id in rows:
            found = f"found the same question as in line {lines[row.row_id]}; expected each question once"
            raise ConfigurationError(f"{path}:{number}: {found}", _WAY_OUT)
        rows[row.row_id], lines[row.row_id] = row, number
        if len(rows) > MAX_ROWS:
            raise ConfigurationError(f"{path}:{number}: found more than {MAX_ROWS:,} rows; expected fewer", _WAY_OUT)
    return tuple(rows.values())


def golden_lines(rows: Iterable[GoldenRow]) -> bytes:
    """Return the golden file that has these rows, one a line, as people would write them."""
    return b"".join(_line(row).model_dump_json(exclude_defaults=True).encode() + b"\n" for row in rows)


def brief(value: object) -> str:
    """Return a value as an error shows it."""
    if value is None:
        return "nothing"
    text = json.dumps(value, default=str) if isinstance(value, dict | list) else f"{value!r}"
    return text if len(text) <= _SHOWN_CHARACTERS + 3 else f"{text[:_SHOWN_CHARACTERS]}…"


def _parse(line: bytes, spec: TaskSpec) -> GoldenRow:
    return GoldenLine.model_validate_json(line.decode()).row(spec)


def row_problem(error: ValueError) -> str:
    """Return why something is no golden row, from what `GoldenLine` and `GoldenLine.row` raise."""
    if isinstance(error, ValidationError):
        return describe_validation_error(error, limit=1).removeprefix("Value error, ")
    return str(error)


def _problem(error: ValueError, line: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"found the byte 0x{error.object[error.start]:02x}; expected UTF-8 text"
    if isinstance(error, ValidationError):
        is_json = error.errors()[0]["type"] != "json_invalid"
        return f"{row_problem(error) if is_json else f'found {brief(line.decode())}'}; {EXPECTED}"
    return row_problem(error)


def _line(row: GoldenRow) -> GoldenLine:
    fields: dict[str, Any] = {name: getattr(row, name) for name in GoldenRow.model_fields if name != "row_id"}
    plain = _plain_messages(row.prompt[0].text, row.answer)
    is_short = max(len(message.text) for message in row.messages) <= MAX_SHORT_TEXT
    if row.messages == plain and not row.tools and is_short:
        return GoldenLine(**{**fields, "messages": None, "text": row.prompt[0].text, "label": row.answer})
    return GoldenLine(**fields)


def _plain_messages(text: str | None, label: str | None) -> tuple[Message, ...]:
    return Message(role=Role.USER, content=text), Message(role=Role.ASSISTANT, content=label)
