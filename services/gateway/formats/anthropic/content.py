"""Anthropic's messages, which are lists of content blocks, as messages of the chat API.

A result of a tool is a block of the user's message here, and a message of its own there. Its pictures, which a tool's
message cannot have, follow in a message of the user.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.gateway.formats.validation import bad_request, quoted
from services.gateway.json_codec import encode_json

Object = dict[str, Any]
_BILLING_HEADER = "x-anthropic-billing-header"
"""A text of Claude Code, different in every request, which would keep the model server from using its prefix cache."""
_REFUSED_BLOCKS = {
    "container_upload": "files are not stored here",
    "tool_addition": "send the tools that the model may use in `tools`",
    "tool_removal": "send the tools that the model may use in `tools`",
}
_ERROR = "Error"


def chat_messages(data: dict[str, Any]) -> list[Object]:
    """Return a request's system prompt and messages as messages of the chat API. Raises HttpError 400.

    Instructions between the messages, of role `system`, move to the system prompt: many chat templates refuse them
    anywhere else.
    """
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("`messages` must be a list with at least one message", "messages")
    system = list(_system_texts(data.get("system"), "system"))
    chat: list[Object] = []
    for number, message in enumerate(messages):
        field = f"messages.{number}"
        role = message.get("role") if isinstance(message, dict) else None
        if role == "user":
            chat += _user_messages(message.get("content"), f"{field}.content")
        elif role == "assistant":
            chat.append(_assistant_message(message.get("content"), f"{field}.content"))
        elif role == "system":
            system += _system_texts(message.get("content"), f"{field}.content")
        else:
            text = f"`{field}.role` is {quoted(role)}; it must be one of: user, assistant, system"
            raise bad_request(text, f"{field}.role")
    if not chat:
        raise bad_request("`messages` has no content", "messages")
    return [{"role": "system", "content": "".join(system)}, *chat] if system else chat


def _system_texts(content: Any, field: str) -> Iterator[str]:
    if content is None:
        return
    for kind, block in _blocks(content, field):
        if kind != "text":
            raise bad_request(f"`{field}` has a block of type {quoted(kind)}; only text is allowed", field)
        text = _text(block, "text", field)
        if text and not text.startswith(_BILLING_HEADER):
            yield text


def _user_messages(content: Any, field: str) -> list[Object]:
    """The results of tools first, as the chat API wants them right after the calls, then their pictures, then the rest.

    vLLM puts a result's pictures between it and the next result, which no other server takes.
    """
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Object] = []
    pictures: list[Object] = []
    parts: list[Object] = []
    for kind, block in _blocks(content, field):
        if kind == "tool_result":
            result, shown = _tool_result(block, field)
            results.append(result)
            if shown:
                pictures.append({"role": "user", "content": shown})
        elif kind == "tool_use":
            raise bad_request(f"`{field}` has a tool_use block; only an assistant's message may", field)
        else:
            parts += _parts(kind, block, field)
    own = [{"role": "user", "content": content}] if (content := _content(parts)) is not None else []
    return [*results, *pictures, *own]


def _assistant_message(content: Any, field: str) -> Object:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    thoughts: list[str] = []
    calls: list[Object] = []
    parts: list[Object] = []
    for kind, block in _blocks(content, field):
        if kind == "tool_use":
            calls.append(_tool_call(block, field))
        elif kind == "thinking":
            thoughts.append(_text(block, "thinking", field))
        elif kind == "tool_result":
            raise bad_request(f"`{field}` has a tool_result block; only a user's message may", field)
        elif kind != "redacted_thinking":  # Encrypted, so the model could not read it.
            parts += _parts(kind, block, field)
    message: Object = {"role": "assistant", "content": _content(parts)}
    if thoughts:
        message["reasoning"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    elif message["content"] is None:
        message["content"] = ""
    return message


def _tool_call(block: Object, field: str) -> Object:
    arguments = block.get("input")
    if not isinstance(arguments, dict | None):
        raise bad_request(f"`{field}` has a tool_use block whose `input` is no object", field)
    function = {"name": _name(block, "name", field), "arguments": encode_json(arguments or {}).decode()}
    return {"id": _name(block, "id", field), "type": "function", "function": function}


def _tool_result(block: Object, field: str) -> tuple[Object, list[Object]]:
    """The tool's message, and the parts that it cannot have, for the user's message after it."""
    content = block.get("content")
    parts = [part for kind, inner in _blocks(content, field) for part in _parts(kind, inner, field)] if content else []
    text = "\n".join([part["text"] for part in parts if part["type"] == "text"])
    # The chat API has no field for it, and vLLM leaves it out, so that the model could not know.
    if block.get("is_error") is True and not text.lower().lstrip().startswith(_ERROR.lower()):
        text = f"{_ERROR}: {text}" if text else _ERROR
    message = {"role": "tool", "tool_call_id": _name(block, "tool_use_id", field), "content": text}
    return message, [part for part in parts if part["type"] != "text"]


def _parts(kind: str, block: Object, field: str) -> list[Object]:
    """The parts of the chat API that a block of text or media becomes."""
    if kind == "text":
        return [_text_part(_text(block, "text", field))]
    if kind == "image":
        return [_image(block, field)]
    if kind == "document":
        return _document(block, field)
    if kind == "search_result":
        head = [value for name in ("title", "source") if isinstance(value := block.get(name), str)]
        texts = [_text(inner, "text", field) for _, inner in _blocks(block.get("content"), field)]
        return [_text_part("\n".join([*head, *texts]))]
    if kind == "tool_reference":  # Every tool is in the prompt, so nothing has to be loaded.
        return [_text_part(_name(block, "tool_name", field))]
    reason = _REFUSED_BLOCKS.get(kind)
    if reason is None and ("tool_use" in kind or "tool_result" in kind):
        reason = "Anthropic's server tools do not exist here, and their results mean nothing to this model"
    reason = reason or "known are text, image, document, search_result, thinking, tool_use and tool_result"
    raise bad_request(f"`{field}` has a block of type {quoted(kind)}, which is not supported: {reason}", field)


def _image(block: Object, field: str) -> Object:
    kind, source = _source(block, field)
    if kind == "base64":
        url = f"data:{_name(source, 'media_type', field)};base64,{_text(source, 'data', field)}"
    elif kind == "url":
        url = _name(source, "url", field)
    else:
        raise _unknown_source("an image", kind, "base64 or url", field)
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: Object, field: str) -> list[Object]:
    kind, source = _source(block, field)
    head = [value for name in ("title", "context") if isinstance(value := block.get(name), str) and value]
    parts = [_text_part("\n".join(head))] if head else []
    if kind == "text":
        return [*parts, _text_part(_text(source, "data", field))]
    if kind == "content":
        for inner_kind, inner in _blocks(source.get("content"), field):
            if inner_kind not in ("text", "image"):
                raise bad_request(f"`{field}` has a document with a block of type {quoted(inner_kind)}", field)
            parts += _parts(inner_kind, inner, field)
        return parts
    if kind == "base64":
        data = f"data:{_name(source, 'media_type', field)};base64,{_text(source, 'data', field)}"
        return [*parts, {"type": "file", "file": {"filename": head[0] if head else "document", "file_data": data}}]
    raise _unknown_source("a document", kind, "text, content or base64", field)


def _source(block: Object, field: str) -> tuple[Any, Object]:
    source = block.get("source")
    if not isinstance(source, dict):
        raise bad_request(f"`{field}` has a block without a `source`", field)
    return source.get("type"), source


def _unknown_source(what: str, kind: Any, known: str, field: str) -> Exception:
    hint = ". Files are not stored here" if kind == "file" else ""
    return bad_request(f"`{field}` has {what} whose source is {quoted(kind)}; it must be {known}{hint}", field)


def _blocks(content: Any, field: str) -> Iterator[tuple[str, Object]]:
    """The blocks with their types; a text is one block. Raises HttpError 400."""
    if isinstance(content, str):
        yield "text", {"text": content}
        return
    if not isinstance(content, list):
        raise bad_request(f"`{field}` must be text, or a list of content blocks", field)
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str):
            raise bad_request(f"`{field}` has a block without a `type`", field)
        yield kind, block


def _content(parts: list[Object]) -> str | list[Object] | None:
    """The content of a message: None for no parts, else a single text as it is, else the parts. Empty texts go."""
    parts = [part for part in parts if part["type"] != "text" or part["text"]]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts or None


def _text_part(text: str) -> Object:
    return {"type": "text", "text": text}


def _text(block: Object, name: str, field: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise bad_request(f"`{field}` has a block whose `{name}` is no text", field)
    return value


def _name(block: Object, name: str, field: str) -> str:
    value = _text(block, name, field)
    if not value:
        raise bad_request(f"`{field}` has a block whose `{name}` is empty", field)
    return value
