"""Conversations as plain text, the only thing an event carries. No I/O.

Text stays unchanged. A list of parts becomes its texts, joined by line breaks as vLLM joins them; a part that is not
text becomes its type in brackets. Tool calls become compact JSON, `[{"name":…,"arguments":…}]`, without their random
ids, so that equal calls are equal answers. A tool's result becomes a user message, as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from schemas.base import MAX_TEXT
from services.gateway.domain import ChatMessage
from services.gateway.formats.validation import bad_request, checked_text, encode_json, quoted

MAX_MESSAGES = 64
ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
    "tool": "user", "function": "user",
}  # fmt: skip


def messages_of(messages: list[Any]) -> list[ChatMessage]:
    """Convert messages of the chat API for an event. Raises HttpError 400 that names the invalid message."""
    return [message_of(message, f"messages.{number}") for number, message in enumerate(messages)]


def message_of(message: Any, field: str) -> ChatMessage:
    """Convert one message of the chat API for an event. Raises HttpError 400."""
    if not isinstance(message, dict):
        raise bad_request(f"`{field}` must be an object with `role` and `content`", field)
    role, content = message.get("role"), message.get("content")
    logged_role = ROLES.get(role) if isinstance(role, str) else None
    if logged_role is None:
        allowed = ", ".join(ROLES)
        raise bad_request(f"`{field}.role` is {quoted(role)}; it must be one of: {allowed}", f"{field}.role")
    calls = message.get("tool_calls")
    if calls is None and (call := message.get("function_call")) is not None:
        calls = [{"function": call}]
    if not isinstance(content, str) or calls or role in ("tool", "function"):
        content = _rendered(message, logged_role, content, calls, field)
    return {"role": logged_role, "content": checked_text(content, f"{field}.content")}


def _rendered(message: dict[str, Any], logged_role: str, content: Any, calls: Any, field: str) -> str:
    """The text of a message that has parts, tool calls or a tool's result."""
    if calls and logged_role == "assistant":
        if not isinstance(calls, list):
            raise bad_request(f"`{field}.tool_calls` must be a list", f"{field}.tool_calls")
        text = text_of(content, f"{field}.content") if content is not None else ""
        return with_tool_calls(text, calls)
    text = text_of(content, f"{field}.content")
    if message["role"] in ("tool", "function"):
        ids = {name: message[name] for name in ("tool_call_id", "name") if isinstance(message.get(name), str)}
        return compact_json({**ids, "content": text})
    return text


def text_of(content: Any, field: str) -> str:
    """Convert a text or a list of parts to text. Raises HttpError 400."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise bad_request(f"`{field}` must be text, or a list of parts", field)
    return "\n".join(_part_text(part, field) for part in content)


def _part_text(part: Any, field: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise bad_request(f"`{field}` has a part without a `type`", field)
    if kind in ("text", "input_text", "output_text", "refusal"):
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise bad_request(f"`{field}` has a part of type {kind} without a text", field)
        return text
    return f"[{kind[:50]}]"


def with_tool_calls(text: str, calls: Iterable[Any]) -> str:
    """Append tool calls to the text they came with."""
    functions = [call.get("function") if isinstance(call, dict) else None for call in calls]
    plain = [{"name": f.get("name"), "arguments": f.get("arguments")} for f in functions if isinstance(f, dict)]
    return "\n".join(filter(None, (text, compact_json(plain))))


def answer_text(message: Any) -> str:
    """The text of an answer in the chat API's format. Raises ValueError if it is not a message."""
    if not isinstance(message, dict):
        raise ValueError("not a message")
    content = message.get("content")
    text = content if isinstance(content, str) else message.get("refusal")
    text = text if isinstance(text, str) else ""
    calls = message.get("tool_calls")
    return with_tool_calls(text, calls) if isinstance(calls, list) and calls else text


def compact_json(value: Any) -> str:
    """Encode as JSON text without spaces. Raises HttpError 400."""
    return encode_json(value).decode()


def check_message_count(messages: list[ChatMessage], field: str) -> None:
    """Raises HttpError 400 for more messages than an event can carry."""
    if len(messages) > MAX_MESSAGES:
        message = f"{len(messages)} messages including the system prompt; at most {MAX_MESSAGES} are allowed"
        raise bad_request(f"{message}: send fewer", field)


def storable_text(text: str) -> str:
    """Cut an answer to what an event can carry. NUL is legal in JSON, but not in a database's text."""
    if "\x00" in text:
        text = text.replace("\x00", "")
    return text[:MAX_TEXT] if len(text) > MAX_TEXT else text
