"""What went to and fro as plain text, the only thing that an event carries. No I/O.

Text stays as it is. A list of parts becomes its texts, joined by line breaks as vLLM joins them; a part that is no text
is told by its type in brackets. Tool calls become compact JSON, `[{"name":…,"arguments":…}]`: without their ids, which
are random, so that the same calls are the same answer. A tool's result is the user's side of the conversation, as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from schemas.base import MAX_TEXT
from services.gateway.domain import ChatMessage
from services.gateway.formats.validation import bad_request, checked_text, quoted

MAX_MESSAGES = 64
ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
    "tool": "user", "function": "user",
}  # fmt: skip


def messages_of(messages: list[Any]) -> list[ChatMessage]:
    """The messages of the chat API for an event. Raises HttpError 400, naming the message at fault."""
    return [message_of(message, f"messages.{number}") for number, message in enumerate(messages)]


def message_of(message: Any, where: str) -> ChatMessage:
    """One message of the chat API for an event. Raises HttpError 400."""
    if not isinstance(message, dict):
        raise bad_request(f"`{where}` must be an object with `role` and `content`", where)
    role, content = message.get("role"), message.get("content")
    known = ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        allowed = ", ".join(ROLES)
        raise bad_request(f"`{where}.role` is {quoted(role)}; it must be one of: {allowed}", f"{where}.role")
    calls = message.get("tool_calls")
    if calls is None and (call := message.get("function_call")) is not None:
        calls = [{"function": call}]
    if not isinstance(content, str) or calls or role in ("tool", "function"):
        content = _whole(message, known, content, calls, where)
    return {"role": known, "content": checked_text(content, f"{where}.content")}


def _whole(message: dict[str, Any], known: str, content: Any, calls: Any, where: str) -> str:
    """The text of a message that is more than a text."""
    if calls and known == "assistant":
        if not isinstance(calls, list):
            raise bad_request(f"`{where}.tool_calls` must be a list", f"{where}.tool_calls")
        text = text_of(content, f"{where}.content") if content is not None else ""
        return with_tool_calls(text, calls)
    text = text_of(content, f"{where}.content")
    if message["role"] in ("tool", "function"):
        named = {name: message[name] for name in ("tool_call_id", "name") if isinstance(message.get(name), str)}
        return compact_json({**named, "content": text})
    return text


def text_of(content: Any, where: str) -> str:
    """Text, or a list of parts as text. Raises HttpError 400."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise bad_request(f"`{where}` must be text, or a list of parts", where)
    return "\n".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise bad_request(f"`{where}` has a part without a `type`", where)
    if kind in ("text", "input_text", "output_text", "refusal"):
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise bad_request(f"`{where}` has a part of type {kind} without a text", where)
        return text
    return f"[{kind[:50]}]"


def with_tool_calls(text: str, calls: Iterable[Any]) -> str:
    """A text and the tool calls that came with it, in one."""
    functions = [call.get("function") if isinstance(call, dict) else None for call in calls]
    plain = [{"name": f.get("name"), "arguments": f.get("arguments")} for f in functions if isinstance(f, dict)]
    return "\n".join(filter(None, (text, compact_json(plain))))


def answer_text(message: Any) -> str:
    """The text of an answer in the chat API's format. Raises ValueError if it is no message."""
    if not isinstance(message, dict):
        raise ValueError("no message")
    content = message.get("content")
    said = content if isinstance(content, str) else message.get("refusal")
    text = said if isinstance(said, str) else ""
    calls = message.get("tool_calls")
    return with_tool_calls(text, calls) if isinstance(calls, list) and calls else text


def compact_json(value: Any) -> str:
    """JSON without spaces. Raises HttpError 400: what was decoded may be nested too deeply to be encoded."""
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:
        raise bad_request(f"the body cannot be passed on: {error}") from error


def check_message_count(turns: list[ChatMessage], field: str) -> None:
    """Raises HttpError 400 if no event can carry so many."""
    if len(turns) > MAX_MESSAGES:
        raise bad_request(f"{len(turns)} messages with the system prompt; at most {MAX_MESSAGES} are taken", field)


def storable_text(text: str) -> str:
    """An answer as far as an event can carry it; NUL is legal in JSON and in no database's text."""
    if "\x00" in text:
        text = text.replace("\x00", "")
    return text[:MAX_TEXT] if len(text) > MAX_TEXT else text
