"""The texts inside JSON that is itself a text: arguments and results of tool calls, an extraction's answer. Pure.

Each string and number is replaced where it stands, so the JSON stays valid, in its own spelling, and byte for byte the
same where nothing is replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import orjson

from shared.privacy.redaction.cues import cue_of, digits_of, is_identifier

_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"(?P<colon>[ \t\r\n]*+:)?+|-?\d[\d.eE+-]*+')

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*+)")
_NUMBER = re.compile(_WHOLE.pattern + r"(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_NO_DIGITS = re.compile(r"[^0-9]")


class JsonLiteral:
    """A string or a number of the JSON at `start:end`. `text` is what it says, behind a cue of `cue_length`."""

    __slots__ = ("cue_length", "end", "kind", "replacement", "start", "text")

    def __init__(self, start: int, end: int, text: str, cue: str, kind: type = str) -> None:
        self.start = start
        self.end = end
        self.text = cue + text
        self.cue_length = len(cue)
        self.kind = kind
        self.replacement: str | None = None

    def put(self, redacted: str) -> None:
        """Say this instead."""
        if self.kind is str:
            self.replacement = orjson.dumps(redacted).decode()
        else:
            self.replacement = number_text(redacted, whole=self.kind is int)


def literals(text: str) -> list[JsonLiteral] | None:
    """Return the literals of this JSON that may have personal data, in order; None if the text is no JSON."""
    return list(_literals(text)) if _is_json(text) else None


def literals_of_answer(text: str) -> list[JsonLiteral] | None:
    """Return the literals of an answer that is a JSON object or list; None of any other, which is text as a whole."""
    return list(_literals(text)) if _is_json(text, "{[") else None


def literals_of_result(text: str) -> list[JsonLiteral] | None:
    """Do the same for a text that nobody has a schema of: each name of a value is one of its literals, too."""
    return list(_literals(text, every_name=True)) if _is_json(text, "{[") else None


def _is_json(text: str, beginnings: str = "") -> bool:
    """Return True for JSON that begins with one of these characters; "": with any."""
    if not text.lstrip().startswith(tuple(beginnings) or ""):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def with_replacements(text: str, found: list[JsonLiteral]) -> str:
    """Return the JSON with the literals that were replaced."""
    pieces, position = [], 0
    for literal in found:
        if literal.replacement is not None:
            pieces += [text[position : literal.start], literal.replacement]
            position = literal.end
    return "".join(pieces) + text[position:] if pieces else text


def number_text(redacted: str, *, whole: bool) -> str:
    """Return a redacted number as a number of JSON, of the same type: `whole`, or with a fraction."""
    if not whole and _NUMBER.fullmatch(redacted) and not _WHOLE.fullmatch(redacted):
        return redacted
    digits = redacted if _WHOLE.fullmatch(redacted) else _NO_DIGITS.sub("", redacted).lstrip("0")[:15] or "0"
    return digits if whole else f"{digits}.0"


def _literals(text: str, *, every_name: bool = False) -> Iterator[JsonLiteral]:
    name = ""
    for token in _TOKEN.finditer(text):
        start, end = token.span()
        if text[start] != '"':
            number = json.loads(token[0])
            if (digits := digits_of(number)) is not None:
                yield JsonLiteral(start, end, digits, cue_of(name), type(number))
            continue
        is_name = token["colon"] is not None
        if is_name:
            end -= len(token["colon"])
        said = _decoded(text[start:end])
        if not is_name:
            if said:
                yield JsonLiteral(start, end, said, cue_of(name))
            continue
        name = said
        if every_name or not is_identifier(said):
            yield JsonLiteral(start, end, said, "")


def _decoded(literal: str) -> str:
    """What a string says; half of a surrogate pair, which no encoder takes, becomes a question mark."""
    said: str = json.loads(literal) if "\\" in literal else literal[1:-1]
    return said.encode("utf-8", "replace").decode() if "\\u" in literal or "\\U" in literal else said
