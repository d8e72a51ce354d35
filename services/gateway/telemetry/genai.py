"""Reads the conversation out of a span, by the GenAI conventions of OpenTelemetry. Pure.

Its texts are the attributes `gen_ai.input.messages`, `gen_ai.output.messages` and `gen_ai.system_instructions`
(https://github.com/open-telemetry/semantic-conventions-genai).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.gateway.formats.api import MAX_PREDICTIONS, Choice
from services.gateway.telemetry.genai_messages import answer_of_span_message, chat_messages_of, message_list
from services.gateway.telemetry.spans import Attributes, Span

_OPERATION = "gen_ai.operation.name"
_OPERATIONS = ("chat", "text_completion", "generate_content")
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
    return _OPERATION in names


def is_generation(attributes: Attributes) -> bool:
    """Return True if the span is one model call, not an embedding, a tool, or an agent around calls."""
    return attributes.get(_OPERATION) in _OPERATIONS


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
    data = span.attributes
    asked, answers = message_list(data.get("gen_ai.input.messages")), message_list(data.get("gen_ai.output.messages"))
    if not asked or not answers:
        return None
    if instructions := message_list(data.get("gen_ai.system_instructions")):
        asked = [{"role": "system", "parts": instructions}, *asked]
    return Content(
        [chat_message for message in asked for chat_message in chat_messages_of(message)],
        [_answer(answer, number, data) for number, answer in enumerate(answers[:MAX_PREDICTIONS])],
    )


def _answer(answer: Any, number: int, attributes: Attributes) -> Choice:
    return answer_of_span_message(answer)._replace(finish_reason=_finish_reason(answer, number, attributes))


def _finish_reason(answer: Any, number: int, attributes: Attributes) -> str | None:
    """Why answer `number` ended, as the chat API says it."""
    reason = answer.get("finish_reason") if isinstance(answer, Mapping) else None
    reasons = attributes.get("gen_ai.response.finish_reasons")
    if not reason and isinstance(reasons, list) and reasons:
        reason = reasons[min(number, len(reasons) - 1)]
    return reason if isinstance(reason, str) and reason else None
