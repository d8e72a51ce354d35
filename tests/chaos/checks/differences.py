"""Compares what was sent with what a row says, field by field.

A text without seeded personal data must be the same, character for character. In one with such data each value must
have been replaced, and all around it is the same; JSON in a text stays JSON of the same shape. A text that was too long
for an event keeps its beginning and its end. Numbers, names, order and structure are always compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.chaos.checks.rows import Facts, is_equal_number
from tests.chaos.load.people import seeded_values

CUT = ("client_left", "upstream_cut", "gateway_stopped")
"""The finish reasons of an answer that nobody got whole."""
_KEPT = 32
_MARK = "characters left out"
_REPLACED = r"[^\n]{1,80}?"
_MAX_SHOWN = 60
_VALUES = sorted({value for values in seeded_values().values() for value in values}, key=len, reverse=True)
_SEEDED = re.compile("|".join(map(re.escape, _VALUES)))


def differences(sent: Facts, stored: Facts, *, may_be_cut: bool) -> Iterator[str]:
    """Yield what is different, as `field: sent, stored`. `may_be_cut`: the client did not get the answer whole."""
    left = may_be_cut and stored["answer"]["finish_reason"] in CUT
    for name, value in sent.items():
        found = stored[name]
        if name == "answer":
            yield from _answer(value, found, left=left)
        elif name in ("logprob", "confidence", "latency_ms"):
            if not left and not is_equal_number(value, found):
                yield f"{name}: {value}, {found}"
        elif not (name == "usage" and left):
            yield from _compare(name, value, found, cut=name == "messages" and sent["truncated"])
    if has_personal_data(stored):
        yield from (f"{path}: not redacted" for path, text in _texts("", stored) if has_personal_data(text))
    if sent["truncated"] and _MARK not in json.dumps(stored["messages"]):
        yield "messages: marked as truncated, but whole"


def has_personal_data(value: Any) -> bool:
    """Return True if any text of the value has seeded personal data."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return any(seeded in text for seeded in _VALUES)  # Much faster than the expression.


def _answer(sent: Facts, stored: Facts, *, left: bool) -> Iterator[str]:
    if not left:
        for name, value in sent.items():
            yield from _compare(f"answer.{name}", value, stored[name], cut=name == "text" and sent["truncated"])
        return
    for name in ("text", "refusal", "reasoning"):  # As much as had arrived.
        begun, whole = stored[name] or "", sent[name] or ""
        complete = begun.rpartition(" ")[0] or begun  # Half a word at the end may look like a name, and is replaced.
        if not has_personal_data(whole) and not whole.startswith(complete):
            yield f"answer.{name}: {_short(whole)}, {_short(begun)}"


def _compare(path: str, sent: Any, stored: Any, *, cut: bool = False) -> Iterator[str]:
    if isinstance(sent, dict) and isinstance(stored, dict):
        for name in sorted(sent.keys() | stored.keys()):
            if (name in sent) != (name in stored):
                yield f"{path}.{name}: {'added' if name in stored else 'missing'}"
            else:
                yield from _compare(f"{path}.{name}", sent[name], stored[name], cut=cut)
    elif isinstance(sent, list | tuple) and isinstance(stored, list):
        if len(sent) != len(stored):
            yield f"{path}: {len(sent)} items, {len(stored)}"
            return
        for number, (one, other) in enumerate(zip(sent, stored, strict=True)):
            yield from _compare(f"{path}.{number}", one, other, cut=cut)
    elif isinstance(sent, str) and isinstance(stored, str):
        if sent != stored and not _is_redacted(sent, stored) and not (cut and _is_shortened(sent, stored)):
            yield f"{path}: {_short(sent)}, {_short(stored)}"
    elif sent != stored or isinstance(sent, bool) != isinstance(stored, bool):
        yield f"{path}: {_short(sent)}, {_short(stored)}"


def _texts(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """All texts of a value, with their paths."""
    if isinstance(value, str):
        yield path[1:], value
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(f"{path}.{name}", inner)


def _is_redacted(sent: str, stored: str) -> bool:
    """Return True if the stored text is the sent one with every seeded value replaced."""
    if not has_personal_data(sent):
        return False
    pieces = _SEEDED.split(sent)
    if sent.startswith("{"):
        try:
            return not any(_compare("", json.loads(sent), json.loads(stored)))
        except ValueError:
            return False
    return re.fullmatch(_REPLACED.join(map(re.escape, pieces)), stored) is not None


def _is_shortened(sent: str, stored: str) -> bool:
    ends = stored[:_KEPT] == sent[:_KEPT] and stored[-_KEPT:] == sent[-_KEPT:]
    return ends and _MARK in stored and len(stored) < len(sent)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
