"""Faults that tests plant in a right row, each with the field that the checker must name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Plant = Callable[[Row], Row]


def sets(**columns: Any) -> Plant:
    """Set columns."""
    return lambda row: {**row, **columns}


def replaces(column: str, old: str, new: str) -> Plant:
    """Replace a text in a column."""
    return lambda row: {**row, column: row[column].replace(old, new)}


def changes_json(column: str, change: Callable[[Any], Any]) -> Plant:
    """Change the value of a column of JSON."""
    return lambda row: {**row, column: json.dumps(change(json.loads(row[column])))}


def sets_message(number: int, **fields: Any) -> Plant:
    """Set fields of a message."""
    return changes_json("messages", lambda m: [*m[:number], {**m[number], **fields}, *m[number + 1 :]])


def drops(column: str, name: str) -> Plant:
    """Drop a field from a column that is an object."""
    return changes_json(column, lambda value: {k: v for k, v in value.items() if k != name})


_PARTS = [{"type": "text", "text": "where is my order"}]
_ONE_CALL = [{"id": "call_1", "name": "find_order", "arguments": '{"order": "A-1"}'}]
FAULTS: dict[str, tuple[str, Plant]] = {
    "a dropped parameter": ("parameters.temperature", drops("parameters", "temperature")),
    "a changed parameter": ("parameters.seed", changes_json("parameters", lambda p: p | {"seed": 99})),
    "a number as a text": ("parameters.temperature", replaces("parameters", "0.25", '"0.25"')),
    "an added parameter": ("parameters.top_p", changes_json("parameters", lambda p: p | {"top_p": 1})),
    "a lost message": ("messages", changes_json("messages", lambda m: m[:-1])),
    "reordered messages": ("messages.*.content", changes_json("messages", lambda m: [*m[:3], m[4], m[3], m[5]])),
    "a changed text": ("messages.*.content", sets_message(1, content="where is my ordre")),
    "a text for a list of parts": ("messages.*.content", sets_message(1, content=_PARTS)),
    "a changed role": ("messages.*.role", sets_message(5, role="assistant")),
    "a lost author": ("messages.*.name", replaces("messages", '"name": "customer"', '"nom": "customer"')),
    "a result of another call": ("messages.*.tool_call_id", sets_message(3, tool_call_id="call_2")),
    "a lost tool call": ("messages.*.tool_calls", sets_message(2, tool_calls=_ONE_CALL)),
    "a changed argument": ("messages.*.tool_calls.*.function.arguments", replaces("messages", "A-2", "A-3")),
    "lost tools": ("tools", sets(tools=None)),
    "a changed description of a tool": ("tools.*.function.description", replaces("tools", "Finds", "Found")),
    "a lost choice of tools": ("tool_choice", sets(tool_choice=None)),
    "a changed format": ("response_format.json_schema.name", replaces("response_format", "reply", "answer")),
    "another API": ("api", sets(api="responses")),
    "a stream": ("stream", sets(stream=True)),
    "a call that is marked as cut": ("truncated", sets(truncated=True)),
    "another model": ("model", sets(model="chaos-other")),
    "a changed answer": ("answer.text", sets(text="I open")),
    "an answer without its tool call": ("answer.tool_calls", sets(tool_calls=None, answer="I open a ticket")),
    "a plain answer without its tool call": ("answer", sets(answer="I open a ticket")),
    "a lost reasoning": ("answer.reasoning", sets(reasoning=None)),
    "another finish reason": ("answer.finish_reason", sets(finish_reason="stop")),
    "an answer that is marked as cut": ("answer.truncated", sets(answer_truncated=True)),
    "lost usage": ("usage.*", sets(cached_tokens=0)),
    "another confidence": ("logprob", sets(logprob=-0.4)),
    "added metadata": ("metadata.ticket", changes_json("metadata", lambda m: m | {"ticket": "added"})),
    "another user": ("user_hash", sets(user_hash="hash-of-eve")),
    "no user": ("user_hash", sets(user_hash=None)),
    "another conversation": ("session_hash", sets(session_hash="hash-of-session-9")),
    "the request of another": ("request_id", sets(request_id="r-1")),
    "redactions of nothing": ("redactions", sets(redactions=1)),
    "an id that the client was not given": ("prediction_id", sets(prediction_id="p-of-nobody")),
}
