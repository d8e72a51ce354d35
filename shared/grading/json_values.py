"""Reads an answer as JSON, strictly, and compares JSON values as JSON does."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

_SHOWN_CHARS = 100

NOT_JSON: Any = object()
"""Stands for the value of a text that is no JSON: None is that of `null`."""


def read_json(text: str) -> Any:
    """Return the value of a text that is JSON and nothing else.

    Raises ValueError for a fence of Markdown or words around it, a key that an object has twice, NaN and Infinity, and
    what is nested too deeply to be read: an application's parser would refuse or misread them.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def json_or_nothing(text: str) -> Any:
    """Return the value of a text, or NOT_JSON."""
    try:
        return read_json(text)
    except ValueError:
        return NOT_JSON


def same_json(one: Any, other: Any) -> bool:
    """Return True if two JSON values are equal: keys in any order, 1 and 1.0 the same number, true no number.

    Texts are equal in any Unicode form; keys, which programs look up, are equal as they are written.
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict[str, Any]()
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:_SHOWN_CHARS]!r} appears twice in one object")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
