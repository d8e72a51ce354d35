"""Cuts names and ids that are longer than an event takes. Pure.

Two that differ stay two, and the result of a tool call keeps the id of its call.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.gateway.formats.conversation import Object

_MAX_NAME = 256
_KEPT = 240


def with_short_names(messages: Sequence[Object]) -> Sequence[Object]:
    """Return messages in which no name and no id is too long; the same object if none was."""
    if max(map(len, messages), default=0) <= 2:  # A role and a content, as nearly all have no more.
        return messages
    if not any(map(_has_long_name, messages)):
        return messages
    names = _ShortNames()
    return [names.of_message(message) for message in messages]


def calls_with_short_names(calls: Sequence[Object]) -> Sequence[Object]:
    """Return an answer's tool calls with names and ids that fit; the same object if all did."""
    if not any(map(_is_long_call, calls)):
        return calls
    names = _ShortNames()
    return [names.of_call(call) for call in calls]


class _ShortNames:
    """What long names become, by their order. The number comes first: redaction may cut an end."""

    def __init__(self) -> None:
        self._short: dict[str, str] = {}

    def of_message(self, message: Object) -> Object:
        cut = message | {name: self._of(message[name]) for name in ("name", "tool_call_id") if message.get(name)}
        if calls := message.get("tool_calls"):
            cut["tool_calls"] = [self.of_call(call) for call in calls]
        return cut

    def of_call(self, call: Object) -> Object:
        return call | {name: self._of(call[name]) for name in ("name", "id") if call.get(name)}

    def _of(self, name: str) -> str:
        if len(name) <= _MAX_NAME:
            return name
        return self._short.setdefault(name, f"{len(self._short) + 1}…{name[:_KEPT]}")


def _has_long_name(message: Object) -> bool:
    return (
        len(message.get("name") or "") > _MAX_NAME
        or len(message.get("tool_call_id") or "") > _MAX_NAME
        or any(map(_is_long_call, message.get("tool_calls") or ()))
    )


def _is_long_call(call: Object) -> bool:
    return len(call["name"]) > _MAX_NAME or len(call.get("id") or "") > _MAX_NAME
