"""Answers of the chat API as Anthropic's messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.gateway.formats.api import Choice, TokenUsage
from services.gateway.formats.conversation import Object, is_json
from services.gateway.json_codec import decode_json, encode_json
from shared.http import HttpError
from shared.identity import random_id

_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"}


def message_of(choice: Choice, stopped_at: Any, usage: TokenUsage, message_id: str, model: str) -> Object:
    """Return the message. `stopped_at`: vLLM's `stop_reason`, the stop sequence that ended the answer."""
    content: list[Object] = []
    if choice.reasoning:
        content.append({"type": "thinking", "thinking": choice.reasoning, "signature": new_signature()})
    if text := choice.text or choice.refusal:
        content.append(text_block(text))
    content += [
        tool_use_block(call.get("id"), call["name"], tool_input(call["arguments"])) for call in choice.tool_calls
    ]
    stop_reason, stop_sequence = stop_of(
        choice.finish_reason,
        stopped_at,
        [call["arguments"] for call in choice.tool_calls],
        refused=bool(choice.refusal),
    )
    return {
        **new_message(message_id, model, usage),
        "content": content or [text_block("")],  # Clients expect a first block.
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
    }


def new_message(message_id: str, model: str, usage: TokenUsage) -> Object:
    """Return a message without content."""
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_of(usage),
    }


def stop_of(
    finish_reason: str | None, stopped_at: Any, arguments: Sequence[str], *, refused: bool
) -> tuple[str, str | None]:
    """Return `stop_reason` and `stop_sequence`.

    Tools were called whatever the finish reason says: vLLM says `stop` for a call that was asked for. But a call that a
    stop sequence or the limit cut short must not run. `arguments`: those of the calls.
    """
    if finish_reason in _STOP_REASONS:
        return _STOP_REASONS[finish_reason], None
    if refused:
        return "refusal", None
    if isinstance(stopped_at, str) and not (arguments and is_json(arguments[-1])):
        return "stop_sequence", stopped_at
    return "tool_use" if arguments or finish_reason == "tool_calls" else "end_turn", None


def usage_of(usage: TokenUsage) -> Object:
    """Return Anthropic's usage, whose `input_tokens` are those that were not in the cache."""
    counts: Object = {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens),
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.answer_tokens,
    }
    if usage.reasoning_tokens:
        counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return counts


def text_block(text: str) -> Object:
    return {"type": "text", "text": text}


def tool_use_block(call_id: Any, name: str, arguments: Mapping[str, Any]) -> Object:
    return {"type": "tool_use", "id": call_id or f"toolu_{random_id()}", "name": name, "input": arguments}


def tool_input(arguments: str) -> Mapping[str, Any]:
    """Return a call's arguments. Those that are no JSON object are wrapped as Anthropic's documentation advises, so
    that the application sees what the model wrote, and its tool refuses them."""
    if not arguments:
        return {}
    try:
        decoded = decode_json(arguments.encode())
        encode_json(decoded)  # A number may be too large to be sent.
    except (ValueError, HttpError):
        decoded = None
    return decoded if isinstance(decoded, dict) else {"INVALID_JSON": arguments}


def new_signature() -> str:
    """Return a signature of a thinking block. Nobody checks it, but clients refuse a block that has none."""
    return random_id()
