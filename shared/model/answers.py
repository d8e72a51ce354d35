"""Reads what a model server answers by OpenAI's chat, completions and responses APIs, as the contract has it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from schemas.conversation import Answer, FinishReason, ToolCall

_MAX_NAME = 256
_CUSTOM = "custom_tool_call"
"""The responses API's call of a tool that takes a text."""
_REASONS = {reason.value: reason for reason in FinishReason} | {
    "function_call": FinishReason.TOOL_CALLS,
    "completed": FinishReason.STOP,
    "max_output_tokens": FinishReason.LENGTH,
}


def parse_answer(path: str, body: Any) -> Answer:
    """Return the first answer in the body of a response to `path`. Raises ValueError if it has none."""
    parse = {"/v1/completions": _completion, "/v1/responses": _response}.get(path, _chat_completion)
    try:
        return parse(body)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not an answer of {path}: {error!r}") from error


def _chat_completion(body: Mapping[str, Any]) -> Answer:
    choice = body["choices"][0]
    message = choice["message"]
    return Answer(
        text=message.get("content") or "",
        tool_calls=_calls(message.get("tool_calls")),
        refusal=message.get("refusal"),
        reasoning=message.get("reasoning") or message.get("reasoning_content"),
        finish_reason=_finish_reason(choice.get("finish_reason")),
    )


def _completion(body: Mapping[str, Any]) -> Answer:
    choice = body["choices"][0]
    return Answer(text=choice["text"] or "", finish_reason=_finish_reason(choice.get("finish_reason")))


def _response(body: Mapping[str, Any]) -> Answer:
    items = body["output"]
    parts = [part for item in items if item["type"] == "message" for part in item.get("content") or ()]
    calls = _calls(item for item in items if item["type"] in ("function_call", _CUSTOM))
    reason = _finish_reason((body.get("incomplete_details") or {}).get("reason") or body["status"])
    return Answer(
        text="".join(part["text"] for part in parts if part["type"] == "output_text"),
        tool_calls=calls,
        refusal="".join(part["refusal"] for part in parts if part["type"] == "refusal") or None,
        reasoning=_reasoning(item for item in items if item["type"] == "reasoning"),
        finish_reason=FinishReason.TOOL_CALLS if calls and reason is FinishReason.STOP else reason,
    )


def _finish_reason(reported: Any) -> FinishReason:
    """Never None: that is the reason of answers made elsewhere, which count as whole."""
    return _REASONS.get(str(reported), FinishReason.OTHER)


def _reasoning(items: Iterable[Mapping[str, Any]]) -> str | None:
    """The whole reasoning where the server gives it, else its summary."""
    texts = [part["text"] for item in items for part in item.get("content") or item.get("summary") or ()]
    return "\n".join(texts) or None


def _calls(calls: Iterable[Mapping[str, Any]] | None) -> tuple[ToolCall, ...]:
    return tuple(_call(call) for call in calls or ())


def _call(call: Mapping[str, Any]) -> ToolCall:
    """A tool call of the chat API, or one of the responses API, which has its own id beside the call's.

    A name that no event can have is cut or marked, not refused: it is what the model answered.
    """
    custom = call if call.get("type") == _CUSTOM else call.get("custom")
    function = custom or call.get("function") or call
    call_id = call.get("call_id") or call.get("id")
    return ToolCall(
        name=str(function.get("name") or "?")[:_MAX_NAME],
        arguments=function.get("input" if custom else "arguments") or "",
        id=str(call_id)[:_MAX_NAME] if call_id else None,
        type="custom" if custom else "function",
    )
