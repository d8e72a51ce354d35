"""Reads the tool calls that an answer has as one text (`Answer.plain`), or that a person wrote, and compares them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from schemas.conversation import ToolCall, plain_answer
from schemas.tools import FunctionTool
from shared.grading.json_schema import canonical, read_answer
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
        match = next((number for number, other in enumerate(left) if same_call(call, other)), None)
        if match is None:
            return False
        del left[match]
    return not left


def with_calls_as_in(given: str, expected: str) -> str | None:
    """Return an answer with its calls spelled as the right answer's are; None if they are other calls.

    How alike two texts are says nothing of their calls: a wrong argument is one word among many. So texts are compared
    where the calls are the same, and then the same calls are the same words.
    """
    (text, calls), (wanted_text, wanted) = split_calls(given), split_calls(expected)
    if not same_calls(calls, wanted):
        return None
    return f"{text}\n{expected[len(wanted_text) :].strip()}".strip() if wanted else given


class ReadCall(NamedTuple):
    """A call with its arguments as JSON values."""

    name: str
    arguments: Any


def calls_text(calls: Iterable[ReadCall], functions: Mapping[str, FunctionTool]) -> str:
    """Return valid calls of these functions as one text in the spelling that is trained on."""
    written = (
        ToolCall(name=call.name, arguments=canonical(call.arguments, functions[call.name].parameters)) for call in calls
    )
    return plain_answer("", None, tuple(written))


def loose_calls(plain: str) -> tuple[ReadCall, ...]:
    """Return the calls of an answer as they are, whatever the task allows today; arguments that are no JSON are {}."""
    found = ((call.name, json_or_nothing(call.arguments.strip() or "{}")) for call in split_calls(plain)[1])
    return tuple(ReadCall(name, {} if arguments is NOT_JSON else arguments) for name, arguments in found)


def read_call(name: str, arguments: str, functions: Mapping[str, FunctionTool]) -> ReadCall:
    """Return one call, its arguments being JSON as text. Raises ValueError for what none of the functions is."""
    if (tool := functions.get(name)) is None:
        raise ValueError(f"{name[:100]!r} is no function of the task; its functions: {', '.join(functions)}")
    try:
        value = read_answer(arguments.strip() or "{}", tool.parameters)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return ReadCall(name, value)


def same_call(one: WrittenCall, other: WrittenCall) -> bool:
    """Return True if both are the same call. Arguments are compared as JSON; what is no JSON, as text.

    A call without arguments has none, or `{}`.
    """
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
