"""Makes requests to a model server of the calls that events carry. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

from schemas.conversation import Api, Call, JsonObject, Media, Message, Part, ToolCall, input_text

LoadPart = Callable[[Media], dict[str, Any]]
"""Returns the part of a message that has a kept picture, sound or document: `shared.storage.media.MediaReader.part`."""
MAX_COMPARED = 32_000
"""Characters of a text that is compared with others."""
TOKEN_IDS = "token_ids"  # noqa: S105 - no password
"""The type of the part that a prompt of token ids becomes: its text is their list as JSON."""
EMBEDS = "prompt_embeds"
"""The type of the part that a prompt of embeddings becomes: vLLM's own of the chat API."""
_TEXT_FIELDS = {"refusal": "refusal", "thinking": "thinking"}
"""The field of a part that has its text, where it is not called so, by the part's type."""
_RESPONSES_TEXTS = ("input_text", "output_text")
"""What the responses API calls a part that is a text."""


def comparable_text(messages: Sequence[Message], prompts: Container[str] | None = None) -> str:
    """Return the text to compare conversations by: of a very long one, its beginning and its end.

    `prompts`: the task's own system prompts; other system messages may be part of it (`asked_or_documents`). None: none
    is.
    """
    text = input_text(tuple(messages))
    return ends_of(text if prompts is None else asked_or_documents(text, input_text(tuple(messages), prompts)))


def asked_or_documents(asked: str, whole: str) -> str:
    """Return the whole text of a conversation if its system messages are longer than the rest, else the rest: a
    document is longer; an application's instruction is not, and must not hide that the same was asked."""
    return whole if len(whole) > 2 * len(asked) + 1 else asked


def ends_of(text: str) -> str:
    """Return what is compared of a text: of a very long one, its beginning and its end."""
    half = MAX_COMPARED // 2
    return text if len(text) <= MAX_COMPARED else f"{text[:half]}\n{text[-half:]}"


def chat_messages(messages: Iterable[Message], load: LoadPart | None = None) -> list[dict[str, Any]]:
    """Return messages as OpenAI's chat API takes them.

    Raises ValueError for media, which an event does not have, but for kept ones with `load`, and what that raises.
    """
    return [_chat_message(message, load) for message in messages]


def chat_tools(tools: Iterable[JsonObject]) -> tuple[JsonObject, ...]:
    """Return functions as the chat API and chat templates take them, whichever API they came by.

    The responses API's have their fields at the top. Tools that a server runs itself, such as a web search, are left
    out: no template knows them.
    """
    functions = [tool for tool in tools if tool.get("type", "function") == "function"]
    if not functions:
        return ()  # Most tasks have none, and a build asks four times of each row.
    return tuple(
        tool if "function" in tool
        else {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
        for tool in functions
    )  # fmt: skip


def template_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return messages as a Hugging Face chat template takes them: contents are texts, arguments of calls objects.

    It is what vLLM makes of `chat_messages` before it applies the template. Raises ValueError for media.
    """
    found = chat_messages(messages)
    for message in found:
        if isinstance(content := message["content"], list):
            texts = (part[_text_field(part["type"])] for part in content)
            message["content"] = "\n".join(filter(None, texts))
        elif content is None:
            message["content"] = ""
        if "reasoning" in message:
            message["reasoning_content"] = message["reasoning"]  # Most templates know it by this name.
        for call in message.get("tool_calls", ()):
            if (function := call.get("function")) is not None:
                function["arguments"] = _object(function["arguments"])
    return found


def replay_request(call: Call, labels: Sequence[str] = (), load: LoadPart | None = None) -> tuple[str, dict[str, Any]]:
    """Return the path and the body, without the model, of the request that was sent. It asks for no stream.

    `labels`: those of the task's revision, to which the answer was constrained if `call.constrained` says so.
    Raises ValueError for a call with media, but for kept ones with `load`, and what that raises.
    """
    body: dict[str, Any] = dict(call.parameters)
    if call.constrained:
        body["structured_outputs"] = {"choice": list(labels)}
    if call.tools:
        body["tools"] = list(call.tools)
    if call.tool_choice is not None:
        body["tool_choice"] = call.tool_choice
    if call.response_format is not None:
        body["text" if call.api is Api.RESPONSES else "response_format"] = call.response_format
    if call.api is Api.COMPLETIONS:
        return "/v1/completions", {**body, **_prompt(call.messages[0], load)}
    if call.api is Api.RESPONSES:
        items = [item for message in call.messages for item in _response_items(message, load)]
        return "/v1/responses", {**body, "input": items, "store": False}
    return "/v1/chat/completions", {**body, "messages": chat_messages(call.messages, load)}


def _chat_message(message: Message, load: LoadPart | None) -> dict[str, Any]:
    content = _content(message.content, load)
    if isinstance(content, list):
        content = [{**part, "type": "text"} if part["type"] in _RESPONSES_TEXTS else part for part in content]
    chat: dict[str, Any] = {"role": message.role, "content": content}
    for name in ("name", "tool_call_id", "reasoning", "refusal"):
        if (value := getattr(message, name)) is not None:
            chat[name] = value
    if message.tool_calls:
        chat["tool_calls"] = [_chat_call(call) for call in message.tool_calls]
    return chat


def _content(content: str | tuple[Part, ...] | None, load: LoadPart | None) -> Any:
    return [_part(part, load) for part in content] if isinstance(content, tuple) else content


def _part(part: Part, load: LoadPart | None) -> dict[str, Any]:
    if part.media is not None and part.media.key is not None and load is not None:
        return load(part.media)
    if part.media is not None or part.text is None:
        raise ValueError(f"the conversation has a part that the event does not carry: {part.type}")
    return {"type": part.type, _text_field(part.type): part.text}


def _text_field(part_type: str) -> str:
    return _TEXT_FIELDS.get(part_type, "text")


def _chat_call(call: ToolCall) -> dict[str, Any]:
    payload = "input" if call.type == "custom" else "arguments"
    return {"id": call.id, "type": call.type, call.type: {"name": call.name, payload: call.arguments}}


def _object(arguments: str) -> dict[str, Any]:
    """The arguments of a call as an object; empty where the model wrote none, which templates could not take."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _prompt(message: Message, load: LoadPart | None) -> dict[str, Any]:
    if not isinstance(message.content, tuple):
        return {"prompt": message.content or ""}
    part = _part(message.content[0], load)
    return {EMBEDS: part["data"]} if part["type"] == EMBEDS else {"prompt": json.loads(part["text"])}


def _response_items(message: Message, load: LoadPart | None) -> list[dict[str, Any]]:
    """A message as items of the responses API."""
    content = _content(message.content, load)
    if message.role == "tool":
        return [{"type": "function_call_output", "call_id": message.tool_call_id, "output": content}]
    items: list[dict[str, Any]] = []
    if message.reasoning is not None:
        text = {"type": "reasoning_text", "text": message.reasoning}
        items.append({"type": "reasoning", "id": "", "summary": [], "content": [text]})
    if isinstance(content, list) and message.role == "assistant":
        items.append(_output_message(content))
    elif content is not None:
        items.append({"role": message.role, "content": content})
    for call in message.tool_calls:
        kind, payload = ("custom_tool_call", "input") if call.type == "custom" else ("function_call", "arguments")
        items.append({"type": kind, "call_id": call.id, "name": call.name, payload: call.arguments})
    return items


def _output_message(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """An answer in parts, as the API gave it: vLLM takes no other form of one."""
    content = [{**part, "annotations": []} if part["type"] == "output_text" else part for part in parts]
    return {"type": "message", "id": "", "role": "assistant", "status": "completed", "content": content}
