"""Reads out of a span how the model was called: who asked, tools, parameters, tokens. Pure.

By the GenAI conventions of OpenTelemetry (`gen_ai.request.temperature`). What cannot be read is left out: none of it is
worth a rejected span.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import orjson

from schemas.base import MAX_COUNT
from services.gateway.formats.api import TokenUsage
from services.gateway.telemetry.spans import Attributes

_USAGE = "gen_ai.usage."
_MODELS = ("gen_ai.response.model", "gen_ai.request.model")
_USERS = ("enduser.id", "user.id", "enduser.pseudo.id")
_SESSIONS = ("gen_ai.conversation.id", "session.id")
_MAX_NAME, _MAX_OWN_ID = 200, 500
_PARAMETERS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_tokens": "max_tokens", "seed": "seed",
    "frequency_penalty": "frequency_penalty", "presence_penalty": "presence_penalty", "stop_sequences": "stop",
    "choice.count": "n",
}  # fmt: skip
"""What the conventions call a parameter behind `gen_ai.request.`, and what the chat API calls it."""


def model_of(attributes: Attributes) -> str | None:
    return _first_text(attributes, _MODELS, _MAX_NAME)


def user_of(attributes: Attributes) -> str | None:
    """The user of the call. A conversation's id does not count, because erasure goes by user."""
    return _first_text(attributes, _USERS, _MAX_OWN_ID)


def session_of(attributes: Attributes) -> str | None:
    return _first_text(attributes, _SESSIONS, _MAX_OWN_ID)


def usage_of(attributes: Attributes) -> TokenUsage:
    """The tokens of the call; 0 where unknown."""
    names = ("input_tokens", "output_tokens", "cache_read.input_tokens", "reasoning.output_tokens")
    return TokenUsage(*(_count(attributes.get(f"{_USAGE}{name}")) for name in names))


def call_fields_of(attributes: Attributes) -> dict[str, Any]:
    """Fields of the event's `Call`: tools and parameters, those that the span has."""
    parameters = {}
    for name, parameter in _PARAMETERS.items():
        value = attributes.get(f"gen_ai.request.{name}")
        if isinstance(value, int | str | list) or (isinstance(value, float) and math.isfinite(value)):
            parameters[parameter] = value
    fields = {"tools": _tools(attributes.get("gen_ai.tool.definitions")), "parameters": parameters}
    return {name: value for name, value in fields.items() if value}


def _tools(found: Any) -> list[Any]:
    """The tools as the chat API has them. They are a list, or its JSON."""
    if isinstance(found, str):
        try:
            found = orjson.loads(found)
        except orjson.JSONDecodeError:
            return []
    return [_chat_tool(tool) for tool in found if isinstance(tool, dict)] if isinstance(found, list) else []


def _chat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as the chat API has it. The conventions have a function's fields at the top."""
    if tool.get("type", "function") != "function" or "function" in tool or "name" not in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _first_text(attributes: Attributes, names: Iterable[str], max_length: int) -> str | None:
    values = (attributes.get(name) for name in names)
    texts = (value for value in values if isinstance(value, str) and "\x00" not in value and value)
    text = next(texts, None)
    return text[:max_length] if text else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value <= MAX_COUNT else 0
