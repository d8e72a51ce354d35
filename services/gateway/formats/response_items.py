"""The items of a responses request as the messages of an event. No I/O.

Several items may be one message of the assistant: reasoning, what it said, and its calls. They are merged as vLLM
merges them before it applies the chat template.
"""

from __future__ import annotations

from typing import Any

from services.gateway.formats.conversation import EventConversation, Object, tool_call
from services.gateway.formats.validation import bad_request

_CALLS = {"function_call": "function", "custom_tool_call": "custom"}
_CALL_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_CONTINUED = ("in_progress", "incomplete")
"""vLLM goes on with a last item of this status. In an event it is as whole as others."""


def add_items(conversation: EventConversation, items: list[Any]) -> None:
    """Add the items of a request's `input`. Raises HttpError 400 that names the invalid one."""
    for number, item in enumerate(items):
        kind = item.get("type") or "message" if isinstance(item, dict) else None
        if not isinstance(kind, str):
            raise bad_request(f"`input.{number}` must be an object with a `type`", f"input.{number}")
        if kind == "item_reference":
            message = f"`input.{number}` refers to an item, and nothing is stored here: send it whole (`store: false`)"
            raise bad_request(message, f"input.{number}")
        _add_item(conversation, kind, item, number)
        if item.get("namespace"):  # The model knows the tool by a name that is made of both.
            conversation.truncated = True
    if items and items[-1].get("status") in _CONTINUED:
        conversation.truncated = True


def has_system_message(given: Any) -> bool:
    """Return True if the input brings a system prompt of its own."""
    items = given if isinstance(given, list) else ()
    return any(isinstance(item, dict) and item.get("role") in ("system", "developer") for item in items)


def _add_item(conversation: EventConversation, kind: str, item: Object, number: int) -> None:
    messages, field = conversation.messages, f"input.{number}"
    if kind == "message":
        if item.get("role") == "assistant" and (last := _last_of_assistant(messages, "content")) is not None:
            last["content"] = conversation.content(item.get("content"), f"{field}.content")
        else:
            message = {name: item.get(name) for name in ("role", "content", "name", "tool_call_id")}
            conversation.add_chat_message(message, number, "input")
    elif kind in _CALLS:
        call = tool_call(item.get("name"), item.get("arguments", item.get("input")), item.get("call_id"), _CALLS[kind])
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind in _CALL_OUTPUTS:
        output = conversation.content(item.get("output"), f"{field}.output")
        message = {"role": "tool", "content": output}
        if isinstance(call_id := item.get("call_id"), str) and call_id:
            message["tool_call_id"] = call_id
        messages.append(message)
    elif kind == "reasoning":
        if item.get("encrypted_content"):  # The model reads it and nobody else does.
            conversation.truncated = True
        parts = item.get("content") or item.get("summary") or ()
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        text = next((text for text in texts if isinstance(text, str)), "")
        if (last := _last_of_assistant(messages, "reasoning")) is not None:
            last["reasoning"] = text
        else:
            messages.append({"role": "assistant", "content": None, "reasoning": text})
    else:  # A tool of the provider's own: the model server may know it, an event does not.
        conversation.truncated = True
        messages.append({"role": "assistant", "content": [{"type": kind[:50]}]})


def _last_of_assistant(messages: list[Object], field: str) -> Object | None:
    """The last message if it is the assistant's and does not have the field yet."""
    if messages and messages[-1]["role"] == "assistant" and messages[-1].get(field) is None:
        return messages[-1]
    return None
