"""The JSON Schema of an extraction's answers: which schemas a task may have, and which fields their answers have.

A schema may use what guided decoding keeps and people can be told: the keywords in `_KEYWORDS`, with references inside
the schema itself, so that what `model_json_schema` of pydantic writes is taken as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import StringConstraints

MAX_PATH = 200
FieldPath = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATH)]
"""A field of an answer, as `fields_of` names it."""
MAX_FIELDS = 200
MAX_SCHEMA_CHARS = 50_000
_MAX_DEPTH = 12
_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_NAME = re.compile(r"[^.\[\]\x00]{1,100}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


_KEYWORDS = {
    "type": (_is_type, f"one of {', '.join(sorted(_TYPES))}, or a list of them"),
    "properties": (_are_schemas, "an object of schemas"),
    "required": (lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of property names"),
    "additionalProperties": (lambda value: isinstance(value, bool), "true or false"),
    "items": (_is_schema, "a schema"),
    "enum": (_is_list, "a list of values"),
    "const": (lambda value: True, "a value"),
    "anyOf": (lambda value: _is_list(value) and all(map(_is_schema, value)), "a list of schemas"),
    "$ref": (lambda value: isinstance(value, str) and value.startswith("#/$defs/"), "#/$defs/NAME"),
    "$defs": (_are_schemas, "an object of schemas"),
    "pattern": (_is_pattern, "a regular expression"),
    "format": (_is_text, "a text"),
    "minimum": (_is_number, "a number"),
    "maximum": (_is_number, "a number"),
    "exclusiveMinimum": (_is_number, "a number"),
    "exclusiveMaximum": (_is_number, "a number"),
    "minLength": (_is_count, "a whole number from 0"),
    "maxLength": (_is_count, "a whole number from 0"),
    "minItems": (_is_count, "a whole number from 0"),
    "maxItems": (_is_count, "a whole number from 0"),
    "title": (_is_text, "a text"),
    "description": (_is_text, "a text"),
    "default": (lambda value: True, "a value"),
    "examples": (lambda value: isinstance(value, list), "a list"),
    "$schema": (_is_text, "a text"),
}
"""Keyword → whether a value of it is valid, and what it must be."""


def fields_of(schema: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Return the fields of a schema's answers, in its order, each with the JSON types of its value.

    A field of an object inside is named `outer.inner`, of the items of a list `outer[].inner`, the items themselves
    `outer[]`. An object or a list of which the schema says no more is one field. No types: any.
    Raises ValueError for a schema that a task may not have, naming the place and what to write instead.
    """
    if schema.get("type") != "object" or not schema.get("properties"):
        raise ValueError('the schema must be of an object with fields: {"type": "object", "properties": {…}}')
    found: dict[str, set[str]] = {}
    for path, types in _fields(schema, schema, "", ()):
        check_path(path)
        found.setdefault(path, set()).update(types)
    if len(found) > MAX_FIELDS:
        raise ValueError(f"the schema has {len(found)} fields; at most {MAX_FIELDS} are judged: leave some out")
    return {path: frozenset(types) for path, types in found.items()}


def check_path(path: str) -> None:
    """Raise ValueError for a path that is longer than events take."""
    if len(path) > MAX_PATH:
        raise ValueError(f"{path[:50]}…: its path has {len(path)} characters; at most {MAX_PATH}")


def property_names(schema: Mapping[str, Any]) -> list[str]:
    """Return the names of an object's properties in the schema's order, which guided decoding writes them in."""
    return list(schema.get("properties") or {})


def texts_of(schema: Mapping[str, Any]) -> set[str]:
    """Return the names and allowed values of a schema: the task's own words, which are nobody's data."""
    found = set[str]()
    values: list[Any] = [schema]
    while values:
        value = values.pop()
        if isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            found.update(value.get("properties") or {})
            allowed = [*(value.get("enum") or ()), value.get("const")]
            found.update(each for each in allowed if isinstance(each, str))
            values += value.values()
    return found


def resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema that a reference stands for; the schema itself if it is none. Raises ValueError."""
    seen = set[str]()
    while isinstance(name := schema.get("$ref"), str):
        target = (root.get("$defs") or {}).get(name.removeprefix("#/$defs/"))
        if not isinstance(target, dict) or name in seen:
            raise ValueError(f"{name} refers to nothing that `$defs` has")
        seen.add(name)
        schema = target
    return schema


def _fields(
    schema: Mapping[str, Any], root: Mapping[str, Any], path: str, inside: tuple[str, ...]
) -> Iterator[tuple[str, set[str]]]:
    """`inside`: the references that led here. A schema inside itself has answers without end."""
    place = path or "the answer"
    _check(schema, place)
    if (name := schema.get("$ref")) is not None:
        if name in inside:
            raise ValueError(f"{place}: {name} contains itself; write out as many levels as answers have")
        yield from _fields(resolved(schema, root), root, path, (*inside, name))
        return
    if len(inside) + path.count(".") + path.count("[]") > _MAX_DEPTH:
        raise ValueError(f"{place}: nested more than {_MAX_DEPTH} deep")
    if (choices := schema.get("anyOf")) is not None:
        for choice in choices:
            yield from _fields(choice, root, path, inside)
        return
    types = _types_of(schema)
    if "object" in types and schema.get("properties"):
        for inner, value in schema["properties"].items():
            if not _NAME.fullmatch(inner):
                raise ValueError(f"{place}: the name {inner[:50]!r} has a dot or brackets, or over 100 characters")
            yield from _fields(value, root, f"{path}.{inner}" if path else inner, inside)
        types = types - {"object", "null"}
    elif "array" in types and "items" in schema:
        yield from _fields(schema["items"], root, f"{path}[]", inside)
        types = types - {"array", "null"}
    else:
        yield path, types
        return
    if types:
        raise ValueError(f"{place}: of fields and of {', '.join(sorted(types))}; say which with `anyOf`, or drop one")


def _types_of(schema: Mapping[str, Any]) -> set[str]:
    named = schema.get("type")
    if named is not None:
        return set(named) if isinstance(named, list) else {named}
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    return {_type_name(value) for value in values}


def _type_name(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
    return names.get(type(value), "null")


def _check(schema: Mapping[str, Any], place: str) -> None:
    """Raise ValueError for a keyword that is unknown or has a value that makes no sense, and its place."""
    for keyword, value in schema.items():
        if keyword not in _KEYWORDS:
            raise ValueError(f"{place}: {keyword[:50]!r} is none of the keywords that a task's schema may use: "
                             f"{', '.join(_KEYWORDS)}")  # fmt: skip
        is_valid, expected = _KEYWORDS[keyword]
        if not is_valid(value):
            raise ValueError(f"{place}: `{keyword}` must be {expected}")
    properties = schema.get("properties") or {}
    if missing := [name for name in schema.get("required") or () if name not in properties]:
        raise ValueError(f"{place}: `required` names {missing}, which `properties` does not have")
