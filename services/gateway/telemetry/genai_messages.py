"""Converts messages of spans to messages of the chat API. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.gateway.formats.api import Choice
from services.gateway.formats.chat import choice_of_message
from services.gateway.json_codec import encode_json
from services.gateway.telemetry.spans import Attributes

_ROLES = {"developer": "system", "model": "assistant", "ai": "assistant", "human": "user", "function": "tool"}
_CALL_PARTS = frozenset({"tool_call", "function"})
_HIDDEN_PARTS = frozenset({"reasoning", "thinking"})
_MEDIA_PARTS = {"blob": "content", "uri": "uri", "file": "file_id"}
"""The parts with media, and the field of each that has them."""
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
    return [_in_order(found[number]) for number in sorted(found)]


def _in_order(item: dict[str, Any]) -> dict[str, Any]:
    """The message with lists of its parts and tool calls, which were collected by their number."""
    for name in ("parts", "tool_calls"):
        if name in item:
            numbers = sorted(item[name], key=lambda number: (len(number), number))
            item[name] = [item[name][number] for number in numbers]
    return item


def _add_field(item: dict[str, Any], field: list[str], value: Any) -> None:
    """Add an attribute to its message; content parts and tool calls keep their order."""
    if field[0] == "contents" and len(field) > 1:
        part = item.setdefault("parts", {}).setdefault(field[1], {})
        part[field[-1]] = value
    elif field[0] == "tool_calls" and len(field) > 1:
        item.setdefault("tool_calls", {}).setdefault(field[1], {})[field[-1]] = value
    else:
        item[".".join(field)] = value


def chat_messages_of(item: Any) -> list[Message]:
    """Convert a message of any convention to messages of the chat API, where each result of a tool has its own."""
    if not isinstance(item, Mapping):
        return [{"role": "user", "content": item}]
    parts = item.get("parts", item.get("content"))
    if isinstance(parts, Mapping):
        parts = [parts]
    if not isinstance(parts, list):
        return [_message(item, parts, item.get("reasoning") or item.get("reasoning_content"))]
    results = [part for part in parts if _kind(part) == "tool_call_response"]
    rest = [part for part in parts if _kind(part) not in _CALL_PARTS | _HIDDEN_PARTS | {"tool_call_response"}]
    calls = [part for part in parts if _kind(part) in _CALL_PARTS]
    thoughts = "\n".join(text for part in parts if _kind(part) in _HIDDEN_PARTS and (text := _said(part)))
    messages = [_result(part) for part in results]
    if rest or calls or thoughts or not results:
        messages.append(_message(item, _content(item, [_part(part) for part in rest]), thoughts, calls))
    return messages


def _content(item: Mapping[str, Any], parts: list[Any]) -> Any:
    """The content of a message: its parts, or a text where the convention of `parts` had to write it as one."""
    if "parts" in item and len(parts) == 1 and isinstance(parts[0], dict) and parts[0].get("type") == "text":
        return parts[0]["text"]
    return parts


def answer_of_span_message(item: Any) -> Choice:
    """The answer in a message of a span, tool calls included."""
    message = chat_messages_of(item)[-1]
    if isinstance(message["content"], list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in message["content"]]
        message["content"] = "\n".join(text for text in texts if isinstance(text, str))
    return choice_of_message(message, (), None)


def _message(item: Mapping[str, Any], content: Any, reasoning: Any = None, calls: Sequence[Any] = ()) -> Message:
    role = item.get("role") or "user"
    if isinstance(role, str):
        role = _ROLES.get(role.lower(), role.lower())
    listed = item.get("tool_calls")
    listed = listed if isinstance(listed, list) else []
    message: Message = {"role": role, "content": content or None}
    for name in ("name", "refusal"):
        if isinstance(item.get(name), str):
            message[name] = item[name]
    if role == "tool":
        message["tool_call_id"] = item.get("tool_call_id", item.get("id"))
    if isinstance(reasoning, str) and reasoning:
        message["reasoning"] = reasoning
    if tool_calls := [_call(call) for call in (*listed, *calls)]:
        message["tool_calls"] = tool_calls
    elif message["content"] is None and "reasoning" not in message:
        message["content"] = ""  # Of some messages nothing was recorded.
    return message


def _result(part: Mapping[str, Any]) -> Message:
    """The message of a tool's result."""
    response = part.get("response", part.get("result"))
    text = response if isinstance(response, str) else encode_json(response).decode()
    return {"role": "tool", "content": text, "tool_call_id": part.get("id")}


def _kind(part: Any) -> str:
    kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
    return kind if isinstance(kind, str) else ""


def _said(part: Mapping[str, Any]) -> str:
    text = part.get("content", part.get("text"))
    return text if isinstance(text, str) else ""


def _part(part: Any) -> Any:
    """A part as the chat API has it: a text, or media."""
    if not isinstance(part, Mapping):
        return part
    kind = _kind(part)
    if kind == "text":
        return {"type": "text", "text": part.get("content", part.get("text"))}
    if kind in _MEDIA_PARTS:
        return _media_part(part, kind)
    if kind == "image" and isinstance(url := part.get("url"), str):  # OpenInference's.
        return {"type": "image_url", "image_url": {"url": url}}
    return dict(part)


def _media_part(part: Mapping[str, Any], kind: str) -> Any:
    """A picture or the like, which the conventions have as bytes in base64, as an address, or as a file's id."""
    modality = part.get("modality")
    held = f"{modality}_url" if modality in ("image", "audio", "video") else "file"
    content = part.get(_MEDIA_PARTS[kind])
    if not isinstance(content, str):
        return {"type": kind}
    if kind == "file":
        return {"type": held, held: {"file_id": content}}
    url = f"data:{part.get('mime_type') or ''};base64,{content}" if kind == "blob" else content
    return {"type": held, held: {"file_data" if held == "file" else "url": url}}


def _call(call: Any) -> dict[str, Any]:
    """A tool call of the chat API, where arguments are JSON text."""
    call = call if isinstance(call, Mapping) else {}
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str | None) else encode_json(arguments).decode()
    return {"id": call.get("id"), "type": "function", "function": {"name": function.get("name"), "arguments": text}}
