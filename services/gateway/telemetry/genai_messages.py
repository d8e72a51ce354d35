"""Converts messages of spans to messages of the chat API. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from services.gateway.formats.api import Choice
from services.gateway.formats.chat import choice_of_message
from services.gateway.formats.validation import encode_json
from services.gateway.telemetry.spans import Attributes

_ROLES = {"developer": "system", "model": "assistant", "ai": "assistant", "human": "user"}
_CALL_PARTS = frozenset({"tool_call", "function"})
_HIDDEN_PARTS = frozenset({"reasoning", "thinking"})
_MESSAGE_KEYS = frozenset({"role", "parts", "content", "type", "tool_calls"})

Message = dict[str, Any]


def message_list(value: Any) -> list[Any]:
    """The messages of a value that is a list, JSON in a string, or one message (which may be plain text)."""
    if isinstance(value, str):
        value = _decoded(value)
    if isinstance(value, list):
        return value
    return [] if value in (None, "") else [value]


def _decoded(text: str) -> Any:
    """Decode JSON if it contains messages; other text stays text."""
    if text[:1] not in ("[", "{"):
        return text
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if text.startswith(
            ('[{"role"', '[{"parts"', '[{"type"')
        ):  # The SDK's length limit of attributes cuts anywhere.
            raise ValueError("the messages are incomplete JSON: was an attribute cut short?") from error
        return text
    messages = value if isinstance(value, list) else [value]
    is_messages = all(isinstance(message, dict) and not _MESSAGE_KEYS.isdisjoint(message) for message in messages)
    return value if is_messages else text


def numbered_messages(attributes: Attributes, prefix: str, inner: str = "") -> list[Any]:
    """Collect attributes named `prefix.N.inner.field` into a list of messages in the order of N."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in attributes.items():
        if not name.startswith(prefix):
            continue
        number, _, field = name.removeprefix(prefix).partition(".")
        field = field.removeprefix(inner)
        if number.isdecimal() and len(number) < 6:
            _add_field(found.setdefault(int(number), {}), field.split("."), value)
    return [found[number] for number in sorted(found)]


def _add_field(item: dict[str, Any], field: list[str], value: Any) -> None:
    """Add an attribute to its message; content parts and tool calls keep their order."""
    if field[0] == "contents":
        if field[-1] == "text":
            item.setdefault("parts", []).append(value)
    elif field[0] == "tool_calls":
        calls = item.setdefault("tool_calls", [])
        if field[-1] == "name":
            calls.append({"name": value})
        elif field[-1] == "arguments" and calls:
            calls[-1]["arguments"] = value
    else:
        item[".".join(field)] = value


def chat_message_of(item: Any) -> Message:
    """Convert a message of any convention to one of the chat API."""
    if not isinstance(item, Mapping):
        return {"role": "user", "content": item}
    role = item.get("role") or "user"
    if isinstance(role, str):
        role = _ROLES.get(role.lower(), role.lower())
    message: Message = {"role": role, "content": item.get("content")}
    if role == "tool":
        message["tool_call_id"] = item.get("tool_call_id")
    calls = [_call(call) for call in listed] if isinstance(listed := item.get("tool_calls"), list) else []
    if isinstance(parts := item.get("parts", message["content"]), list):
        calls += [_call(part) for part in parts if _kind(part) in _CALL_PARTS]
        message["content"] = [_part(part) for part in parts if _kind(part) not in _CALL_PARTS | _HIDDEN_PARTS]
        if results := [part for part in parts if _kind(part) == "tool_call_response"]:
            message |= {"role": "tool", "tool_call_id": results[0].get("id")}
    elif isinstance(parts, Mapping):
        message["content"] = [_part(parts)]
    if calls:
        message["tool_calls"] = calls
    # A message of which only the reasoning was recorded, or nothing, has no text.
    message["content"] = message["content"] or (None if calls else "")
    return message


def answer_of_span_message(item: Any) -> Choice:
    """The answer in a message of a span, tool calls included."""
    message = chat_message_of(item)
    if isinstance(message["content"], list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in message["content"]]
        message["content"] = "\n".join(text for text in texts if isinstance(text, str))
    return choice_of_message(message, (), None)


def _kind(part: Any) -> str:
    kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
    return kind if isinstance(kind, str) else ""


def _part(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    kind = _kind(part)
    if kind == "text":
        return {"type": "text", "text": part.get("content", part.get("text"))}
    if kind == "tool_call_response":
        response = part.get("response", part.get("result"))
        return {"type": "text", "text": response if isinstance(response, str) else encode_json(response).decode()}
    return dict(part)


def _call(call: Any) -> dict[str, Any]:
    """A tool call of the chat API, where arguments are JSON text."""
    call = call if isinstance(call, Mapping) else {}
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str | None) else encode_json(arguments).decode()
    return {"function": {"name": function.get("name"), "arguments": text}}
