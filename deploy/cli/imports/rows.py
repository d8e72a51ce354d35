"""Makes rows of a task of a file's lines, and says what is wrong with the others as the builder of data sets would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from pydantic import ValidationError

from deploy.cli.imports.files import Line
from schemas.conversation import Call, Role, plain_answer
from schemas.tasks import TaskSpec
from services.dataset_builder.building.chat_format import answer_message, format_error, output_error
from services.gateway.formats.conversation import EventConversation, Object
from services.gateway.formats.media import MediaReferences
from services.gateway.recording.external import call_of_messages
from shared.answers import InvalidAnswer, answer_form
from shared.conversation import QUESTION_BYTES, chat_tools, never_trained
from shared.conversation.task_tools import chat_fields
from shared.errors import describe_validation_error
from shared.http import HttpError

_MAX_NAME = 200
_MAX_WEIGHT = 10.0
_MILLISECONDS = 1e11
"""A time since 1970 from which it is taken for milliseconds: of seconds it would be in 5138."""


class InvalidLine(ValueError):
    """A line that cannot be imported; the text says why."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns. `text`: one question of a user; without it `messages` has a whole conversation."""

    text: str = "text"
    label: str = "label"
    author: str = "author"
    time: str = "time"
    user: str = "user"
    session: str = "session"
    weight: str = "weight"
    id: str = "id"
    messages: str = "messages"


@dataclass(frozen=True)
class ImportedRow:
    """A row as it is in the file, with its personal data. `asked`: its messages, without what the task adds."""

    number: int
    asked: list[Object]
    call: Object
    label: str
    author: str
    at: datetime
    user: str | None
    session: str | None
    weight: float
    own_id: str | None


class RowReader:
    """Reads the rows of one file. `author` and `at`: of lines that have none; `now`: no row may be of later."""

    def __init__(self, spec: TaskSpec, columns: Columns, author: str, at: datetime, now: datetime) -> None:
        self._spec = spec
        self._columns = columns
        self._author = author
        self._at = at
        self._now = now
        self._form = answer_form(spec)
        fields = chat_fields(spec)
        self._tools: Object = {name: fields[name] for name in fields if name in ("tools", "tool_choice")}
        self._media = MediaReferences(b"")  # A row with media is refused.

    def row(self, line: Line) -> ImportedRow:
        """Raises InvalidLine, whose text quotes nothing of a person but a label."""
        if line.error:
            raise InvalidLine(line.error)
        asked, label = self._asked(line.values)
        label = self._label(label)
        call = self._call(asked)
        self._check(call, label)
        return ImportedRow(
            number=line.number,
            asked=asked,
            call=call,
            label=label,
            author=_name(line.values, self._columns.author) or self._author,
            at=self._time(line.values.get(self._columns.time)),
            user=_name(line.values, self._columns.user),
            session=_name(line.values, self._columns.session),
            weight=self._weight(line.values.get(self._columns.weight)),
            own_id=_name(line.values, self._columns.id),
        )

    def _asked(self, values: Mapping[str, Any]) -> tuple[list[Object], Any]:
        """The messages that were sent, in the event's form, and the label as the line has it."""
        columns = self._columns
        text, messages, label = (values.get(name) for name in (columns.text, columns.messages, columns.label))
        if messages is None:
            if not isinstance(text, str) or not text.strip():
                raise InvalidLine(f"no {columns.text}" if text in (None, "") else f"`{columns.text}` is no text")
            return [{"role": "user", "content": text}], label
        if not isinstance(messages, list):
            raise InvalidLine(f"`{columns.messages}` is no list of messages")
        conversation = EventConversation(self._media)
        try:
            asked = conversation.add_chat_messages(messages).messages
        except HttpError as error:
            raise InvalidLine(error.reason) from error
        if conversation.truncated:
            raise InvalidLine("a message has something that no event has, such as a picture or a custom field")
        if not asked or asked[-1]["role"] != Role.ASSISTANT:
            return asked, label
        if label is not None:
            raise InvalidLine(f"two labels: the assistant's last message, and `{columns.label}`")
        return asked[:-1], _answer_of(asked[-1])

    def _label(self, given: Any) -> str:
        if given is None or (isinstance(given, str) and not given.strip()):
            raise InvalidLine("no label")
        text = given.strip() if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)
        try:
            return self._form.canonical(self._form.renamed(self._form.from_user(text)))
        except InvalidAnswer as error:
            raise InvalidLine(str(error)) from error

    def _call(self, asked: list[Object]) -> Object:
        """The call as the gateway would have logged it: with the task's system prompt, unless there is another one."""
        has_system = any(message["role"] in ("system", "developer") for message in asked)
        prompt = [] if has_system or not self._spec.system_prompt else [self._system]
        return {**call_of_messages([*prompt, *asked]), "api": "chat", **self._tools}

    @property
    def _system(self) -> Object:
        return {"role": "system", "content": self._spec.system_prompt}

    def _check(self, call: Object, label: str) -> None:
        for name, size in (("text", len(orjson.dumps(call))), ("label", len(orjson.dumps(label)))):
            if size > QUESTION_BYTES:
                raise InvalidLine(f"{name} too long: {size:,} bytes as JSON, {QUESTION_BYTES:,} at most")
        try:
            parsed = Call.model_validate(call)
        except ValidationError as error:
            raise InvalidLine(describe_validation_error(error)) from error
        if any("\x00" in text for text in (label, *(message.text for message in parsed.messages))):
            raise InvalidLine("a NUL character")
        tools = chat_tools(parsed.tools)
        answer = answer_message(label, (), tools)
        problem = (
            never_trained(parsed, ())
            or format_error((*parsed.messages, answer), tools, self._spec)
            or output_error(answer, None, self._spec)
        )
        if problem is not None:
            raise InvalidLine(": ".join(problem))

    def _time(self, given: Any) -> datetime:
        try:
            at = self._at if given in (None, "") else _moment(given)
        except (ValueError, OverflowError, OSError) as error:
            raise InvalidLine(f"no time: {str(given)[:40]!r}; expected such as 2026-09-30T08:15:00Z") from error
        if at > self._now:
            raise InvalidLine(f"its time is in the future: {at.isoformat()}")
        days = self._spec.dataset.max_age_days
        if days is not None and at < self._now - timedelta(days=days):
            raise InvalidLine(f"older than the task's dataset.max_age_days ({days}): {at.isoformat()}")
        return at

    def _weight(self, given: Any) -> float:
        if given in (None, ""):
            return 1.0
        try:
            weight = float(given)
        except (TypeError, ValueError):
            weight = 0.0
        if not 0.0 < weight <= _MAX_WEIGHT:
            raise InvalidLine(f"no weight: {str(given)[:40]!r}; expected a number over 0, at most {_MAX_WEIGHT:g}")
        return weight


def _answer_of(message: Object) -> str:
    """The assistant's message as one text. Raises InvalidLine for a refusal, or parts that are no text."""
    content = message.get("content") or ""
    if message.get("refusal") or not isinstance(content, str):
        raise InvalidLine("the assistant's last message is no text")
    try:
        (parsed,) = Call.model_validate({"messages": [message]}).messages
    except ValidationError as error:
        raise InvalidLine(describe_validation_error(error)) from error
    return plain_answer(content, None, parsed.tool_calls)


def _name(values: Mapping[str, Any], column: str) -> str | None:
    """A name or an id: a text, or the number that a database has."""
    given = values.get(column)
    if given is None or given == "":
        return None
    if isinstance(given, bool) or not isinstance(given, str | int) or "\x00" in str(given):
        raise InvalidLine(f"`{column}` is no text")
    name = str(given).strip()
    if len(name) > _MAX_NAME:
        raise InvalidLine(f"`{column}` has {len(name):,} characters, {_MAX_NAME} at most")
    return name or None


def _moment(given: Any) -> datetime:
    """A time: ISO 8601, without a zone in UTC, or seconds or milliseconds since 1970."""
    if isinstance(given, str):
        try:
            given = float(given)
        except ValueError:
            given = datetime.fromisoformat(given.strip())
    if isinstance(given, datetime):
        return given if given.tzinfo else given.replace(tzinfo=UTC)
    return datetime.fromtimestamp(given / 1_000 if given >= _MILLISECONDS else given, UTC)
