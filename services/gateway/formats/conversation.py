"""Conversations as an event carries them: the objects of `schemas/conversation.py`, made without pydantic. No I/O.

A message keeps its structure: the role, a text or parts, tool calls, the result of one. Pictures, sound and documents
become references. What an event cannot say, such as a part of an unknown kind, marks the call as truncated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.gateway.formats.media import MEDIA_KINDS, MediaReferences
from services.gateway.formats.validation import bad_request, quoted
from services.gateway.json_codec import decode_json, encode_json
from shared.conversation.question_text import question_text

Object = dict[str, Any]
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_OTHER_ROLE = "other"
"""Written for a role that an event cannot say."""
_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""The kinds of parts that are text, and the field of each that has it."""
_MAX_PART_TYPE = 50
_UNSAID_FIELDS = ("tools", "task", "audio")
"""Fields of a message that a model may see and an event does not have: vLLM's own, and OpenAI's spoken answer."""


class EventConversation:
    """The messages of an event while they are collected. `truncated`: something of them could not be said."""

    __slots__ = ("media", "messages", "truncated")

    def __init__(self, media: MediaReferences) -> None:
        self.media = media
        self.messages: list[Object] = []
        self.truncated = False

    def add_chat_messages(self, messages: Iterable[Any], *, added: int = 0) -> EventConversation:
        """Add messages of the chat API. Raises HttpError 400 that names the invalid one, as the client counts.

        `added`: so many messages in front are the gateway's.
        """
        so_far = self.messages
        for number, message in enumerate(messages, start=-added):
            if type(message) is dict and len(message) == 2 and type(message.get("content")) is str:
                role = message.get("role")
                if role == "user" or role == "assistant" or role == "system":
                    so_far.append(message)  # As most are: it has the event's form already.
                    continue
            self.add_chat_message(message, number)
        return self

    def add_chat_message(self, message: Any, number: int, name: str = "messages") -> None:
        """Add one message of the chat API, `name`.`number` of the request. Raises HttpError 400."""
        self.messages.append(self._chat_message(message, f"{name}.{number}"))

    def content(self, content: Any, field: str) -> Any:
        """The content of a message: a text, None, or parts as the event has them. Raises HttpError 400."""
        if content is None or isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise bad_request(f"`{field}` must be text, or a list of parts", field)
        return [self._part(part, field) for part in content]

    def _chat_message(self, message: Any, field: str) -> Object:
        if not isinstance(message, dict):
            raise bad_request(f"`{field}` must be an object with `role` and `content`", field)
        logged: Object = {
            "role": self._role(message.get("role"), f"{field}.role"),
            "content": self.content(message.get("content"), f"{field}.content"),
        }
        for name in ("name", "tool_call_id"):
            if isinstance(value := message.get(name), str) and value:
                logged[name] = value
        for name, given in (("refusal", "refusal"), ("reasoning", "reasoning_content"), ("reasoning", "reasoning")):
            if isinstance(value := message.get(given), str):
                logged[name] = value
        if any(message.get(name) for name in _UNSAID_FIELDS):
            self.truncated = True
        calls = message.get("tool_calls")
        if calls is None and message.get("function_call") is not None:  # OpenAI's older form of one call.
            calls = [{"function": message["function_call"]}]
            self.truncated = True  # vLLM passes over it, and a call without an id cannot be sent again.
        if calls:
            logged["tool_calls"] = tool_calls_of(calls, f"{field}.tool_calls")
        return logged

    def _role(self, role: Any, field: str) -> str:
        """The role of a message: also one that only a chat template knows, as far as an event can say it."""
        if not isinstance(role, str) or not role:
            raise bad_request(
                f"`{field}` is {quoted(role)}; it must be a role, such as system, user, assistant or tool", field
            )
        if _ROLE.fullmatch(role):
            return role
        self.truncated = True
        return _OTHER_ROLE

    def _part(self, part: Any, field: str) -> Object:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise bad_request(f"`{field}` has a part that is neither a text nor an object", field)
        kind = part.get("type") or next((name for name in part if name in MEDIA_KINDS or name in _TEXT_PARTS), None)
        if not isinstance(kind, str):
            raise bad_request(f"`{field}` has a part without a `type`", field)
        if (text_field := _TEXT_PARTS.get(kind)) is not None:
            text = part.get(text_field)
            if text is not None and not isinstance(text, str):
                raise bad_request(f"`{field}` has a part of type {kind} whose `{text_field}` is no text", field)
            return {"type": kind, "text": text or ""}
        if kind in MEDIA_KINDS:
            return {"type": kind, "media": self.media.reference(kind, part)}
        self.truncated = True
        return {"type": kind[:_MAX_PART_TYPE]}


def opening_text(messages: Sequence[Object]) -> str:
    """What a conversation of an event begins with: its first user message, else its first one; parts as JSON.

    Without the keys of media that are kept: they have the day, and the conversation may go on tomorrow.
    """
    first = next((message for message in messages if message["role"] == "user"), messages[0]) if messages else {}
    content = first.get("content") or ""
    return content if isinstance(content, str) else encode_json([_without_key(part) for part in content]).decode()


def _without_key(part: Object) -> Object:
    if "key" not in (media := part.get("media") or {}):
        return part
    return {**part, "media": {name: value for name, value in media.items() if name != "key"}}


def asked_text(messages: Sequence[Object]) -> str:
    """What a second opinion reads of a conversation of an event (`question_text`)."""
    return question_text((message["role"], message.get("content")) for message in messages)


def tool_calls_of(calls: Any, field: str) -> list[Object]:
    """Convert tool calls of the chat API, of a request or an answer. Raises HttpError 400."""
    if not isinstance(calls, list):
        raise bad_request(f"`{field}` must be a list", field)
    return [tool_call_of(call) for call in calls if isinstance(call, dict)]


def tool_call_of(call: Mapping[str, Any]) -> Object:
    """Convert one tool call. Arguments that are no text, as some clients send them, become JSON."""
    kind = "custom" if call.get("type") == "custom" else "function"
    function = call.get(kind)
    function = function if isinstance(function, dict) else {}
    return tool_call(function.get("name"), function.get("arguments", function.get("input")), call.get("id"), kind)


def tool_call(name: Any, arguments: Any, call_id: Any = None, kind: str = "function") -> Object:
    """A tool call as an event has it, but for names and ids that are too long for one."""
    call: Object = {"name": str(name or "unnamed"), "arguments": arguments_text(arguments), "type": kind}
    if isinstance(call_id, str) and call_id:
        call["id"] = call_id
    return call


def arguments_text(arguments: Any) -> str:
    """A call's arguments, or a piece of them. Those that are no text, as some servers send them, become JSON."""
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else encode_json(arguments).decode()


def answer_text(content: Any) -> str:
    """The text of an answer, or of a piece of one, also where a server sends it in parts; of others nothing."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


def begins_another_call(call_id: Any, name: Any, arguments: Iterable[str], delta: Mapping[str, Any]) -> bool:
    """Return True if a piece of a stream is not of the call `call_id`, though it has the same index.

    Some servers number no calls, or all of them 0. Others give each piece of a call an id of its own, and some its
    name, too: then the `arguments` so far tell whether the call is complete.
    """
    function = delta.get("function") or delta.get("custom") or {}
    if not (call_id and function.get("name")) or delta.get("id") in (None, "", call_id):
        return False
    return function["name"] != name or not (so_far := "".join(arguments)) or "custom" in delta or is_json(so_far)


def is_json(text: str) -> bool:
    """Return True if a text is JSON and complete."""
    try:
        decode_json(text.encode())
    except ValueError:
        return False
    return True
