"""Cuts names and ids that are longer than an event takes. Pure.

Two that differ stay two, and the result of a tool call keeps the id of its call.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from operator import is_

from services.gateway.formats.conversation import Object

_MAX_NAME = 256
_KEPT = 200


def with_short_names(messages: Sequence[Object]) -> Sequence[Object]:
    """Return messages in which no name and no id is too long; the same object if none was."""
    if max(map(len, messages), default=0) <= 2:  # A role and a content, as nearly all have no more.
        return messages
    short = [_short(message, "name", "tool_call_id") for message in messages]
    return messages if all(map(is_, short, messages)) else short


def calls_with_short_names(calls: Sequence[Object]) -> Sequence[Object]:
    """Return an answer's tool calls with names and ids that fit; the same object if all did."""
    short = [_short(call, "name", "id") for call in calls]
    return calls if all(map(is_, short, calls)) else short


def _short(item: Object, *names: str) -> Object:
    cut: Object = {name: _cut(long) for name in names if len(long := item.get(name) or "") > _MAX_NAME}
    if (calls := item.get("tool_calls")) and (short := calls_with_short_names(calls)) is not calls:
        cut["tool_calls"] = short
    return item | cut if cut else item


def _cut(name: str) -> str:
    """The hash comes first: redaction may cut an end."""
    return f"{sha256(name.encode()).hexdigest()[:24]}…{name[:_KEPT]}"
