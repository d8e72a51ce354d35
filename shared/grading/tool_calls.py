"""Reads the tool calls that an answer has as one text (`Answer.plain`), or that a person wrote, and compares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from shared.grading.json_values import NOT_JSON, json_or_nothing, same_json

_MAX_NAME = 256


class WrittenCall(NamedTuple):
    """A call of a tool. `arguments` is JSON as text, as the model wrote it: it may be invalid."""

    name: str
    arguments: str


def split_calls(plain: str) -> tuple[str, tuple[WrittenCall, ...]]:
    """Split an answer into its text and the tool calls in its last line, or in all of it; without: its whole text."""
    text, _, last_line = plain.rpartition("\n")
    for rest, candidate in (("", plain), (text, last_line)):
        calls = json_or_nothing(candidate)
        if isinstance(calls, list) and calls and all(map(_is_call, calls)):
            return rest, tuple(WrittenCall(call["name"], call["arguments"]) for call in calls)
    return plain, ()


def same_calls(given: Sequence[WrittenCall], expected: Sequence[WrittenCall]) -> bool:
    """Return True if both are the same calls, in any order: they are made in parallel."""
    left = list(expected)
    for call in given:
        match = next((number for number, other in enumerate(left) if _same_call(call, other)), None)
        if match is None:
            return False
        del left[match]
    return not left


def _same_call(one: WrittenCall, other: WrittenCall) -> bool:
    """Arguments are compared as JSON; what is no JSON, as text. A call without arguments has none, or `{}`."""
    arguments = [json_or_nothing(call.arguments.strip() or "{}") for call in (one, other)]
    if any(value is NOT_JSON for value in arguments):
        return one == other
    return one.name == other.name and same_json(*arguments)


def _is_call(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"name", "arguments"}
        and all(isinstance(field, str) for field in value.values())
        and 0 < len(value["name"]) <= _MAX_NAME
    )
