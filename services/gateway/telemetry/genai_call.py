"""Reads out of a span how the model was called: who asked, tools, parameters, tokens. Pure.

By the GenAI conventions of OpenTelemetry (`gen_ai.request.temperature`) and OpenInference
(`llm.invocation_parameters`). What cannot be read is left out: none of it is worth a rejected span.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from schemas.base import MAX_COUNT
from services.gateway.formats.api import TokenUsage
from services.gateway.telemetry.spans import Attributes

_PROMPT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_ANSWER_TOKENS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
_CACHED_TOKENS = (
    "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens",
    "llm.token_count.prompt_details.cache_read",
)  # fmt: skip
_REASONING_TOKENS = ("gen_ai.usage.reasoning.output_tokens", "llm.token_count.completion_details.reasoning")
_MODELS = ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name", "llm.request.model")
_USERS = ("enduser.id", "user.id", "enduser.pseudo.id", "gen_ai.user", "llm.user")
_SESSIONS = ("gen_ai.conversation.id", "session.id")
_MAX_NAME, _MAX_OWN_ID = 200, 500
_RUN_IDS = ("run-", "lc_run-")
_PARAMETERS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_tokens": "max_tokens", "seed": "seed",
    "frequency_penalty": "frequency_penalty", "presence_penalty": "presence_penalty", "stop_sequences": "stop",
    "choice.count": "n",
}  # fmt: skip
"""What the conventions call a parameter behind `gen_ai.request.`, and what the chat API calls it."""
_INVOCATION = frozenset(
    (*_PARAMETERS.values(), "max_completion_tokens", "logit_bias", "reasoning_effort", "min_p", "repetition_penalty")
)
"""The parameters of OpenInference's JSON that are kept: it may hold anything that the application passed."""


def model_of(attributes: Attributes) -> str | None:
    return _first_text(attributes, _MODELS, _MAX_NAME)


def user_of(attributes: Attributes) -> str | None:
    """The user of the call. A conversation's id does not count, because erasure goes by user."""
    return _first_text(attributes, _USERS, _MAX_OWN_ID)


def session_of(attributes: Attributes) -> str | None:
    return _first_text(attributes, _SESSIONS, _MAX_OWN_ID)


def response_id_of(attributes: Attributes) -> str | None:
    """The id that the model's API gave the response. LangChain has an id of its own run there, where it streams."""
    response_id = _first_text(attributes, ("gen_ai.response.id", "llm.response.id"), _MAX_NAME)
    return None if response_id is None or response_id.startswith(_RUN_IDS) else response_id


def usage_of(attributes: Attributes) -> TokenUsage:
    """The tokens of the call; 0 where unknown."""
    names = (_PROMPT_TOKENS, _ANSWER_TOKENS, _CACHED_TOKENS, _REASONING_TOKENS)
    return TokenUsage(*(_count(attributes, kind) for kind in names))


def call_fields_of(attributes: Attributes) -> dict[str, Any]:
    """Fields of the event's `Call`: tools, tool choice, response format and parameters, those that the span has."""
    invocation = _decoded(attributes.get("llm.invocation_parameters"))
    invocation = invocation if isinstance(invocation, dict) else {}
    parameters = {name: value for name, value in invocation.items() if name in _INVOCATION and _is_parameter(value)}
    for name, parameter in _PARAMETERS.items():
        value = attributes.get(f"gen_ai.request.{name}", attributes.get(f"gen_ai.openai.request.{name}"))
        if _is_parameter(value):
            parameters[parameter] = value
    fields: dict[str, Any] = {"tools": _tools(attributes, invocation), "parameters": parameters}
    for name in ("tool_choice", "response_format"):
        fields[name] = invocation.get(name)
    return {name: value for name, value in fields.items() if value}


def _tools(attributes: Attributes, invocation: Mapping[str, Any]) -> list[Any]:
    found = _decoded(attributes.get("gen_ai.tool.definitions")) or invocation.get("tools")
    if not found:
        numbered: list[Any] = []
        while (schema := attributes.get(f"llm.tools.{len(numbered)}.tool.json_schema")) is not None:
            numbered.append(_decoded(schema))
        found = numbered
    return [_chat_tool(tool) for tool in found if isinstance(tool, dict)] if isinstance(found, list) else []


def _chat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as the chat API has it. The conventions have a function's fields at the top."""
    if tool.get("type", "function") != "function" or "function" in tool or "name" not in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _decoded(value: Any) -> Any:
    """A value that may be JSON in a string; None for a string that is not."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return None


def _is_parameter(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int | str | dict) or (isinstance(value, list) and bool(value))


def _first_text(attributes: Attributes, names: Iterable[str], max_length: int) -> str | None:
    values = (attributes.get(name) for name in names)
    texts = (value for value in values if isinstance(value, str) and "\x00" not in value and value)
    text = next(texts, None)
    return text[:max_length] if text else None


def _count(attributes: Attributes, names: Iterable[str]) -> int:
    values = (attributes.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and 0 <= value <= MAX_COUNT), 0)
