"""Calls of functions as reviewers fill them in: a function, and one input for each of its arguments. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from schemas.output_schema import resolved
from schemas.tasks import TaskSpec
from schemas.tools import FunctionTool
from shared.answers import InvalidAnswer, answer_form
from shared.errors import InvalidMessage
from shared.grading.json_values import read_json
from shared.grading.tool_calls import loose_calls, split_calls


class ArgumentInput(NamedTuple):
    """What the form asks for one argument. `choices`: the only texts that it takes; empty: any.

    `hint`: its description and type, for the person who fills it in.
    """

    name: str
    choices: tuple[str, ...]
    hint: str
    required: bool


@dataclass
class FormCall:
    """A call as it stands in the form: each argument's text by its name; empty: the call does not have it.

    `given`: the arguments that the form began with. One whose text nobody changed is still that value, which a text
    does not say in full: an empty string that is required, spaces at its end.
    """

    function: str
    values: dict[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)


def inputs_of(tool: FunctionTool) -> tuple[ArgumentInput, ...]:
    """Return the inputs of a function's arguments, in the order of its schema."""
    required = tool.parameters.get("required")
    names = required if isinstance(required, list) else []
    found = []
    for name, schema in _properties(tool).items():
        choices, types = _choices(schema), sorted(_types(schema) - {"null"})
        hint = " · ".join(part for part in (str(schema.get("description") or ""), " or ".join(types)) if part)
        found.append(ArgumentInput(name, choices, hint, name in names and "null" not in _types(schema)))
    return tuple(found)


def form_calls(text: str, spec: TaskSpec) -> list[FormCall]:
    """Return an answer's calls as the form begins with them; calls of functions that the task has not are left out."""
    return [
        FormCall(call.name, {name: _text(value) for name, value in call.arguments.items()}, call.arguments)
        for call in loose_calls(text)
        if call.name in spec.functions and isinstance(call.arguments, dict)
    ]


def form_text(text: str) -> str:
    """Return the text of an answer, without its calls."""
    return split_calls(text)[0]


def answer_of_form(calls: Sequence[FormCall], text: str, spec: TaskSpec) -> str:
    """Return what was filled in as one text, in the spelling that is trained on; without calls, the `text`.

    Raises InvalidMessage that names the argument that is missing or wrong.
    """
    filled = [(call.function, _arguments(spec.functions[call.function], call)) for call in calls]
    try:
        return answer_form(spec).canonical(_loose_text(filled) if filled else text)
    except InvalidAnswer as error:
        raise InvalidMessage(f"label: {error}", f"Answers of {spec.name} call its functions.") from error


def _loose_text(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    return json.dumps([{"name": name, "arguments": json.dumps(arguments)} for name, arguments in calls])


def _arguments(tool: FunctionTool, call: FormCall) -> dict[str, Any]:
    properties = _properties(tool)
    found: dict[str, Any] = {}
    for asked in inputs_of(tool):
        text = call.values.get(asked.name) or ""
        if (text or asked.required) and asked.name in call.given and text == _text(call.given[asked.name]):
            found[asked.name] = call.given[asked.name]
        elif text.strip():
            found[asked.name] = _value(text, properties[asked.name])
        elif "null" in _types(properties[asked.name]):
            found[asked.name] = None
    if tool.parameters.get("additionalProperties") is not False:  # The form has no inputs for these.
        found |= {name: value for name, value in call.given.items() if name not in properties}
    return found


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """Return the value that a text stands for; the text itself where nothing else fits, which the schema refuses."""
    for choice in _enum(schema):
        if _text(choice) == text.strip():
            return choice
    if (types := _types(schema)) and types <= {"string", "null"}:
        return text.strip()
    try:
        return read_json(text)
    except ValueError:
        return text.strip()


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _choices(schema: Mapping[str, Any]) -> tuple[str, ...]:
    values = _enum(schema) or ([True, False] if _types(schema) - {"null"} == {"boolean"} else [])
    return tuple(_text(value) for value in values if value is not None)


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema names; none: any."""
    if parts := schema.get("anyOf"):
        of_parts = [_types(part) for part in parts]
        return set().union(*of_parts) if all(of_parts) else set()
    named = schema.get("type")
    if isinstance(named, list):
        return set(named)
    if isinstance(named, str):
        return {named}
    return {"null"} if None in (schema.get("enum") or ()) else set()


def _enum(schema: Mapping[str, Any]) -> list[Any]:
    """The only values that a schema allows; empty: it does not list them."""
    if parts := schema.get("anyOf"):
        listed = [[None] if part.get("type") == "null" else _enum(part) for part in parts]
        return [value for values in listed for value in values] if all(listed) else []
    return list(schema.get("enum") or ())


def _properties(tool: FunctionTool) -> dict[str, Mapping[str, Any]]:
    """The schemas of a function's arguments, with what references stand for."""
    schemas = tool.parameters.get("properties")
    known = schemas if isinstance(schemas, dict) else {}
    return {name: _written_out(schema, tool.parameters) for name, schema in known.items() if isinstance(schema, dict)}


def _written_out(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    found = resolved(schema, root)
    if parts := found.get("anyOf"):
        found = {**found, "anyOf": [_written_out(part, root) for part in parts]}
    return found
