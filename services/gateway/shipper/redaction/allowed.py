"""The strings of an event that are not redacted: each place that has them, with the pattern that they must match.

Everything else is redacted, a field that is added later included. A value that does not match its pattern is redacted
as any text is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import lru_cache
from typing import Any

from schemas.base import Variant
from schemas.catalog import topic_of
from schemas.conversation import Api, FinishReason, Role
from schemas.predictions import FeedbackGiven, PredictionLogged, RequestObserved


class Kind(Enum):
    """What stands at a place that has no pattern.

    TEXT: one that is a JSON object or list, as results of tools are, is redacted value by value, and name by name.
    NAME: a text of limited length. FREE: JSON of any shape, whose names say what its values are. METADATA: likewise, of
    texts of limited length. SCHEMA: JSON that a developer wrote. ARGUMENTS: JSON as a text. ANSWER: a text that may be
    JSON. NUMBER: a number that is nobody's, or an object of such numbers, whose names are redacted like free ones.
    OWNER: see `OWNERS`.
    """

    TEXT = auto()
    NAME = auto()
    ARGUMENTS = auto()
    ANSWER = auto()
    NUMBER = auto()
    FREE = auto()
    METADATA = auto()
    SCHEMA = auto()
    OWNER = auto()


Matches = Callable[[str], Any]
"""A function in C: called for every string of every event."""
Place = Kind | Matches | Mapping[str, "Place"]
"""A list has the place of its items."""
Places = Mapping[str, Place]

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_TASK = r"[a-z0-9][a-z0-9-]{0,62}"
_PREDICTION = rf"{_TASK}\.x?[0-9a-f]{{32}}\.[0-9a-f]{{12}}"
_ADAPTER = rf"{_TASK}-[0-9a-f]{{12}}(?:-[0-9a-f]{{12}})?"
_NO_LONG_NUMBER = r"(?!.*\d{9})(?=.*[A-Za-z])"
"""A name has a letter and no row of nine digits: it is no phone number, card or account."""


def _pattern(expression: str) -> Matches:
    return re.compile(expression).fullmatch


def _few(expression: str) -> Matches:
    """A pattern of names of which there are few: most have been seen before."""
    return lru_cache(1_000)(re.compile(expression).fullmatch)


def _one_of(*values: str) -> Matches:
    return frozenset(map(str, values)).__contains__


_ADAPTER_NAME = _few(rf"{_ADAPTER}|{_NO_LONG_NUMBER}[A-Za-z0-9][A-Za-z0-9._-]{{0,199}}")
_MODEL_NAME = _few(rf"{_ADAPTER}|{_NO_LONG_NUMBER}[A-Za-z0-9][A-Za-z0-9._:/+-]{{0,199}}")
_HASH = _pattern(r"[0-9a-f]{24}")
_TOOL_NAME = _few(rf"{_NO_LONG_NUMBER}[A-Za-z0-9_.:/-]{{1,128}}")
_CALL_ID = _pattern(
    rf"(?:chatcmpl-tool-|call_|toolu_|fc_)[A-Za-z0-9_-]{{1,100}}|{_NO_LONG_NUMBER}[A-Za-z0-9_-]{{1,64}}"
)
_APP_NAME = _few(rf"{_NO_LONG_NUMBER}[a-z0-9][a-z0-9._-]{{0,63}}")
_KIND_NAME = _few(r"[a-z]+(?:_[a-z0-9]+)*")
_CALIBRATION_NAME = _few(rf"{_ADAPTER}-[0-9a-f]{{6}}")

_TASK_NAME = _few(_TASK)
_VERSION = _few(r"\d{1,4}(?:\.\d{1,4}){1,2}(?:\.?(?:a|b|rc|dev|post)\d{1,4})?(?:\+[a-z0-9.]{1,40})?")

_ENVELOPE: Places = {
    "event_id": _pattern(_UUID),
    "occurred_at": _pattern(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)"),
    "task": _TASK_NAME,
    "task_revision": _few(r"[0-9a-f]{12}"),
    "cycle_id": _pattern(rf"{_TASK}-\d{{8}}-\d{{6}}"),
}
_TOOL_CALLS: Places = {
    "name": _TOOL_NAME,
    "arguments": Kind.ARGUMENTS,
    "id": _CALL_ID,
    "type": _one_of("function", "custom"),
}
_MEDIA: Places = {
    "kind": _one_of("image", "audio", "video", "document", "text"),
    "hash": _HASH,
    "media_type": _pattern(r"[a-z]{1,20}/[a-z0-9.+-]{1,80}"),
    "size": Kind.NUMBER,
    "key": _pattern(rf"media/{_TASK}/\d{{4}}-\d\d-\d\d/(?:[0-9a-f]{{24}}|anonymous)/[0-9a-f]{{24}}"),
}
KNOWN_ROLE = _one_of(*Role, "developer", "function")
"""Another one, which only a chat template knows, is redacted, and stays a role."""
_MESSAGES: Places = {
    "role": KNOWN_ROLE,
    "content": {"type": _KIND_NAME, "text": Kind.TEXT, "media": _MEDIA},
    "name": Kind.NAME,
    "tool_calls": _TOOL_CALLS,
    "tool_call_id": _CALL_ID,
    "reasoning": Kind.TEXT,
    "refusal": Kind.TEXT,
}
_FUNCTION: Places = {
    "name": _TOOL_NAME,
    "description": Kind.TEXT,
    "parameters": Kind.SCHEMA,
    "input_schema": Kind.SCHEMA,
}
_TOOLS: Places = {**_FUNCTION, "type": _KIND_NAME, "function": _FUNCTION}
_CALL: Places = {
    "api": _one_of(*Api),
    "messages": _MESSAGES,
    "tools": _TOOLS,
    "tool_choice": _TOOLS,
    "response_format": Kind.SCHEMA,
    "parameters": {"seed": Kind.NUMBER},
}
_CONFIDENCE: Places = {
    **dict.fromkeys(("score", "logprob", "tokens", "raw", "fields", "threshold"), Kind.NUMBER),
    "calibration": _CALIBRATION_NAME,
}
_ANSWERS: Places = {
    "text": Kind.ANSWER,
    "tool_calls": _TOOL_CALLS,
    "refusal": Kind.TEXT,
    "reasoning": Kind.TEXT,
    "prediction_id": _pattern(_PREDICTION),
    "finish_reason": _one_of(*FinishReason),
    "confidence": _CONFIDENCE,
    "tokens": Kind.NUMBER,
}

PLACES: Mapping[str, Places] = {
    topic_of(PredictionLogged).name: {
        **_ENVELOPE,
        "request_id": _pattern(rf"x?[0-9a-f]{{32}}(?:-\d{{1,3}})?|{_PREDICTION}"),
        "call": Kind.OWNER,
        "answers": Kind.OWNER,
        "model": _MODEL_NAME,
        "adapter": _ADAPTER_NAME,
        "variant": _one_of(*Variant),
        "usage": dict.fromkeys(("prompt_tokens", "answer_tokens", "cached_tokens", "reasoning_tokens"), Kind.NUMBER),
        "user_hash": _HASH,
        "session_hash": _HASH,
        "subject": _HASH,
        "app": _APP_NAME,
        "metadata": Kind.METADATA,
        "gateway_version": _VERSION,
        "latency_ms": Kind.NUMBER,
        "redactions": Kind.NUMBER,
    },
    topic_of(FeedbackGiven).name: {
        **_ENVELOPE,
        "prediction_id": _pattern(_PREDICTION),
        "kind": _one_of("thumbs", "accepted", "edited", "label"),
        "text": Kind.ANSWER,
        "user_hash": _HASH,
        "redactions": Kind.NUMBER,
    },
    topic_of(RequestObserved).name: {
        **_ENVELOPE,
        "prediction_id": _pattern(_PREDICTION),
        "variant": _one_of(*Variant),
        "adapter": _ADAPTER_NAME,
        "user_hash": _HASH,
        "subject": _HASH,
        "status": Kind.NUMBER,
        "latency_ms": Kind.NUMBER,
        "confidence": Kind.NUMBER,
    },
}
"""The places of each topic that the gateway writes."""
OWNERS: Mapping[str, Mapping[str, Places]] = {topic_of(PredictionLogged).name: {"call": _CALL, "answers": _ANSWERS}}
"""The objects, or lists of them, that say of themselves whether something is left out of them."""
