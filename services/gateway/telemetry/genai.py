"""Reads the conversation out of a span, by the GenAI conventions of OpenTelemetry and by OpenInference. Pure.

Places of the texts; the first that has both messages and an answer is used:
- attributes `gen_ai.input.messages`, `gen_ai.output.messages`, `gen_ai.system_instructions`
  (https://github.com/open-telemetry/semantic-conventions-genai);
- numbered attributes: `llm.input_messages.0.message.content` (OpenInference), `gen_ai.prompt.0.content` (LiteLLM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.gateway.formats.api import MAX_PREDICTIONS, Choice
from services.gateway.telemetry.genai_messages import (
    answer_of_span_message,
    chat_messages_of,
    message_list,
    numbered_messages,
)
from services.gateway.telemetry.spans import Attributes, Span

_OPERATIONS = frozenset({"chat", "text_completion", "generate_content", "completion"})
_GENERATION_ATTRIBUTES = frozenset({"gen_ai.operation.name", "openinference.span.kind", "llm.request.type"})
_STATUSES = {
    "BadRequestError": 400, "AuthenticationError": 401, "PermissionDeniedError": 403, "NotFoundError": 404,
    "ConflictError": 409, "UnprocessableEntityError": 422, "RateLimitError": 429, "APITimeoutError": 504,
    "APIConnectionError": 502, "timeout": 504,
}  # fmt: skip
"""The status of each `error.type` of the OpenAI and Anthropic clients; any other is a 500."""


@dataclass(frozen=True, slots=True)
class Content:
    """A conversation, as messages of the chat API, and its answers."""

    messages: list[Any]
    answers: list[Choice]


def may_be_generation(names: set[str]) -> bool:
    """Return True if a span with attributes of these names may be a model call."""
    return not _GENERATION_ATTRIBUTES.isdisjoint(names)


def is_generation(attributes: Attributes) -> bool:
    """Return True if the span is one model call, not an embedding, a tool, or an agent around calls."""
    operation = attributes.get("gen_ai.operation.name") or attributes.get("llm.request.type")
    if operation is None:
        return attributes.get("openinference.span.kind") == "LLM"
    return isinstance(operation, str) and operation in _OPERATIONS


def status_of(span: Span) -> int:
    """The HTTP status of the call, as far as the span has it."""
    status = span.attributes.get("http.response.status_code")
    if isinstance(status, int) and 100 <= status <= 599:
        return status
    if not span.failed:
        return 200
    kind = str(span.attributes.get("error.type", "")).rpartition(".")[2]
    if kind.isdecimal() and 400 <= int(kind[:4]) <= 599:
        return int(kind)
    return _STATUSES.get(kind, 500)


def content_of(span: Span) -> Content | None:
    """The conversation and its answer; None if the span does not have both.

    Raises ValueError for unreadable texts, HttpError 400 for texts that an event cannot carry.
    """
    for messages, answers in (_from_attributes(span.attributes), _from_numbered_attributes(span.attributes)):
        if messages and answers:
            return Content(
                [chat_message for message in messages for chat_message in chat_messages_of(message)],
                [_answer(answer, number, span.attributes) for number, answer in enumerate(answers[:MAX_PREDICTIONS])],
            )
    return None


def _from_attributes(data: Attributes) -> tuple[list[Any], list[Any]]:
    messages = message_list(data.get("gen_ai.input.messages"))
    if instructions := message_list(data.get("gen_ai.system_instructions")):
        messages = [{"role": "system", "parts": instructions}, *messages]
    return messages, message_list(data.get("gen_ai.output.messages"))


def _from_numbered_attributes(attributes: Attributes) -> tuple[list[Any], list[Any]]:
    messages = numbered_messages(attributes, "gen_ai.prompt.") or numbered_messages(
        attributes, "llm.input_messages.", "message."
    )
    answers = numbered_messages(attributes, "gen_ai.completion.") or numbered_messages(
        attributes, "llm.output_messages.", "message."
    )
    return messages, answers


def _answer(answer: Any, number: int, attributes: Attributes) -> Choice:
    return answer_of_span_message(answer)._replace(finish_reason=_finish_reason(answer, number, attributes))


def _finish_reason(answer: Any, number: int, attributes: Attributes) -> str | None:
    """Why answer `number` ended, as the chat API says it."""
    reason = answer.get("finish_reason") if isinstance(answer, Mapping) else None
    reasons = attributes.get("gen_ai.response.finish_reasons")
    reason = reason or (reasons[min(number, len(reasons) - 1)] if isinstance(reasons, list) and reasons else reasons)
    reason = reason or attributes.get("llm.finish_reason")
    return reason if isinstance(reason, str) and reason else None
