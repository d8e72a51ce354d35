"""Reads an answer by its task's JSON Schema, and says in words what is wrong with it (jsonschema-rs)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import jsonschema_rs

from schemas.output_schema import property_names, resolved
from shared.grading.json_values import read_json

_MAX_ERRORS = 5
_SHOWN_CHARS = 300


def read_answer(text: str, schema: Mapping[str, Any]) -> Any:
    """Return an answer's value. Raises ValueError, naming the places, if it is no JSON or breaks the schema."""
    try:
        value = read_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} (line {error.lineno}, column {error.colno})") from error
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from error
    if faults := schema_errors(value, schema):
        raise ValueError("; ".join(faults))
    return value


def schema_errors(value: Any, schema: Mapping[str, Any]) -> list[str]:
    """Return the first few places where a value breaks the schema, each with what is wrong; empty if it does not."""
    faults = islice(_validator(json.dumps(schema)).iter_errors(value), _MAX_ERRORS)
    return [f"{_place(fault.instance_path)}: {fault.message}"[:_SHOWN_CHARS] for fault in faults]


def schema_fault(schema: Mapping[str, Any]) -> str:
    """Return why no answer can be checked by a schema; empty if one can.

    Its pattern is one of Python's alone, say: then each answer would be called invalid, whatever it is.
    """
    try:
        _validator(json.dumps(schema))
    except ValueError as error:
        return str(error).partition("\n")[0]
    return ""


def canonical(value: Any, schema: Mapping[str, Any]) -> str:
    """Return a valid answer as JSON in the spelling that is trained on: one line, keys in the order of the schema.

    It is the order in which guided decoding writes them, and equal answers are equal texts.
    """
    return json.dumps(_ordered(value, schema, schema), ensure_ascii=False)


def _ordered(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    schema = resolved(schema, root)
    for choice in schema.get("anyOf") or ():
        if not schema_errors(value, {"$defs": root.get("$defs") or {}, "anyOf": [choice]}):
            return _ordered(value, choice, root)
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        names = [name for name in property_names(schema) if name in value]
        names += sorted(value.keys() - properties.keys())
        return {name: _ordered(value[name], properties.get(name, {}), root) for name in names}
    if isinstance(value, list):
        return [_ordered(item, schema.get("items") or {}, root) for item in value]
    return value


def _place(path: Iterable[str | int]) -> str:
    """A place as fields are named: `items[0].price`."""
    place = ""
    for step in path:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else step
    return place or "the answer"


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    return jsonschema_rs.validator_for(json.loads(schema), offline=True, validate_formats=True)
