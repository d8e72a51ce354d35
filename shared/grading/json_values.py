"""Reads an answer as JSON, strictly, and compares JSON values as JSON does."""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

_SHOWN_CHARS = 100

MAX_DEPTH = 128
"""Objects and lists in each other: as serde_json, which parsers of many languages stand on, and far below the depth at
which comparing them would exhaust Python's stack."""

NOT_JSON: Any = object()
"""Stands for the value of a text that is no JSON: None is that of `null`."""


def read_json(text: str) -> Any:
    """Return the value of a text that is JSON and nothing else.

    Raises ValueError for a fence of Markdown or words around it, a key that an object has twice, NaN and Infinity, a
    number that is larger than any float, half of a surrogate pair, and what is nested more than `MAX_DEPTH` deep: an
    application's parser would refuse or misread them.
    """
    too_deep = f"nested more than {MAX_DEPTH} deep"
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=_float, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError(too_deep) from error
    if text.count("[") + text.count("{") > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
        raise ValueError(too_deep)
    if "\\u" in text:
        try:
            check_characters(value)
        except UnicodeEncodeError as error:
            raise ValueError("half of a surrogate pair is no character") from error
    return value


def json_or_nothing(text: str) -> Any:
    """Return the value of a text, or NOT_JSON."""
    try:
        return read_json(text)
    except ValueError:
        return NOT_JSON


def same_json(one: Any, other: Any) -> bool:
    """Return True if two JSON values, no deeper than `read_json` reads them, are equal.

    Keys may be in any order, 1 and 1.0 are the same number, and true is no number. Texts are equal in any Unicode form;
    keys, which programs look up, are equal as they are written.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, str) and isinstance(other, str):
        return composed(one) == composed(other)
    return bool(one == other)


def composed(text: str) -> str:
    """Return the text in Unicode's composed form (NFC), in which equal characters are equal code points."""
    return unicodedata.normalize("NFC", text)


def is_deeper(value: Any, depth: int) -> bool:
    """Return True if more than `depth` lists and objects are in each other."""
    level = [value]
    for _ in range(depth):
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def check_characters(value: Any) -> None:
    """Raise UnicodeEncodeError where a text in a JSON value has half of a surrogate pair, which no UTF-8 has."""
    json.dumps(value, ensure_ascii=False).encode()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict[str, Any]()
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:_SHOWN_CHARS]!r} appears twice in one object")
        found[key] = value
    return found


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:_SHOWN_CHARS]} is too large a number")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
