"""Converts messages of spans to messages of the chat API. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.gateway.formats.api import Choice
from services.gateway.formats.chat import choice_of_message
from services.gateway.json_codec import encode_json

_MEDIA_PARTS = {"blob": "content", "uri": "uri", "file": "file_id"}
"""The parts with media, and the field of each that has them."""

Message = dict[str, Any]


def message_list(value: Any) -> list[Any]:
    """The messages of an attribute: a list, or its JSON. Raises ValueError for a text that is no JSON."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:  # The SDK's length limit of attributes cuts anywhere.
            raise ValueError("the messages are no JSON: was an attribute cut short?") from error
    return value if isinstance(value, list) else []


def chat_messages_of(item: Any) -> list[Message]:
    """Convert a message to messages of the chat API, where each result of a tool has its own."""
    if not isinstance(item, Mapping):
        return [{"role": "user", "content": item}]
    parts = item.get("parts", item.get("content"))
    if not isinstance(parts, list):
        return [_message(item, parts)]
    results, calls, thoughts, rest = [], [], [], []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind == "tool_call_response":
            results.append(_result(part))
        elif kind == "tool_call":
            calls.append(_call(part))
        elif kind == "reasoning":
            thoughts.append(str(part.get("content")))
        else:
            rest.append(_part(part, kind))
    if rest or calls or thoughts or not results:
        results.append(_message(item, _content(rest), "\n".join(thoughts), calls))
    return results


def _content(parts: list[Any]) -> Any:
    """The content of a message: its parts, or a text that the convention had to write as one."""
    if len(parts) == 1 and isinstance(parts[0], dict) and parts[0].get("type") == "text":
        return parts[0]["text"]
    return parts


def answer_of_span_message(item: Any) -> Choice:
    """The answer in a message of a span, tool calls included."""
    message = chat_messages_of(item)[-1]
    if isinstance(message["content"], list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in message["content"]]
        message["content"] = "\n".join(text for text in texts if isinstance(text, str))
    return choice_of_message(message, (), None)


def _message(item: Mapping[str, Any], content: Any, reasoning: str = "", calls: Sequence[Any] = ()) -> Message:
    message: Message = {"role": item.get("role") or "user", "content": content or None}
    if isinstance(item.get("name"), str):
        message["name"] = item["name"]
    if reasoning:
        message["reasoning"] = reasoning
    if calls:
        message["tool_calls"] = calls
    elif message["content"] is None and not reasoning:
        message["content"] = ""  # Of some messages nothing was recorded.
    return message


def _result(part: Mapping[str, Any]) -> Message:
    """The message of a tool's result."""
    return {"role": "tool", "content": _as_text(part.get("response")), "tool_call_id": part.get("id")}


def _call(part: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call of the chat API, where arguments are JSON text."""
    arguments = part.get("arguments")
    text = arguments if arguments is None else _as_text(arguments)
    return {"id": part.get("id"), "type": "function", "function": {"name": part.get("name"), "arguments": text}}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else encode_json(value).decode()


def _part(part: Any, kind: Any) -> Any:
    """A part as the chat API has it: a text, or media."""
    if not isinstance(part, Mapping):
        return part
    if kind == "text":
        return {"type": "text", "text": part.get("content", part.get("text"))}
    return _media_part(part, kind) if kind in _MEDIA_PARTS else dict(part)


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
