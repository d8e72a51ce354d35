"""Reads the conversation out of a span, by old and new GenAI conventions of OpenTelemetry. Pure.

Places of the texts; the first that has both messages and an answer is used:
- attributes `gen_ai.input.messages`, `gen_ai.output.messages`, `gen_ai.system_instructions`, of the span, or of its
  event `gen_ai.client.inference.operation.details` (https://github.com/open-telemetry/semantic-conventions-genai);
- events `gen_ai.user.message` … and `gen_ai.choice` (conventions before 1.37), or `gen_ai.content.prompt` and
  `gen_ai.content.completion` (before 1.28);
- numbered attributes: `gen_ai.prompt.0.content` (OpenLLMetry), `llm.input_messages.0.message.content`
  (OpenInference).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.gateway.formats.api import Choice
from services.gateway.telemetry.genai_messages import (
    answer_of_span_message,
    chat_message_of,
    message_list,
    numbered_messages,
)
from services.gateway.telemetry.spans import Attributes, Span, SpanEvent

_OPERATIONS = frozenset({"chat", "text_completion", "generate_content", "completion"})
_GENERATION_ATTRIBUTES = frozenset({"gen_ai.operation.name", "openinference.span.kind", "llm.request.type"})
_DETAILS = "gen_ai.client.inference.operation.details"
_PROMPT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_ANSWER_TOKENS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
_MODELS = ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name", "llm.request.model")
_USERS = ("enduser.id", "user.id", "enduser.pseudo.id", "gen_ai.user", "llm.user")
_STATUSES = {
    "BadRequestError": 400, "AuthenticationError": 401, "PermissionDeniedError": 403, "NotFoundError": 404,
    "ConflictError": 409, "UnprocessableEntityError": 422, "RateLimitError": 429, "APITimeoutError": 504,
    "APIConnectionError": 502, "timeout": 504,
}  # fmt: skip
"""The status of each `error.type` of the OpenAI and Anthropic clients; any other is a 500."""


@dataclass(frozen=True, slots=True)
class Content:
    """A conversation and its answer."""

    messages: list[Any]
    answer: Choice
    finish_reason: str | None = None


def may_be_generation(names: set[str]) -> bool:
    """Return True if a span with attributes of these names may be a model call."""
    return not _GENERATION_ATTRIBUTES.isdisjoint(names)


def is_generation(attributes: Attributes) -> bool:
    """Return True if the span is a model call with one answer, not an embedding, a tool, or an agent around calls."""
    operation = attributes.get("gen_ai.operation.name") or attributes.get("llm.request.type")
    if operation is None:
        return attributes.get("openinference.span.kind") == "LLM"
    return isinstance(operation, str) and operation in _OPERATIONS


def model_of(attributes: Attributes) -> str | None:
    return _first_text(attributes, _MODELS)


def user_of(attributes: Attributes) -> str | None:
    """The user of the call. A conversation's id does not count, because erasure goes by user."""
    return _first_text(attributes, _USERS)


def response_id_of(attributes: Attributes) -> str | None:
    return _first_text(attributes, ("gen_ai.response.id", "llm.response.id"))


def tokens_of(attributes: Attributes) -> tuple[int, int]:
    """Tokens of the prompt and of the answer; 0 if unknown."""
    return _count(attributes, _PROMPT_TOKENS), _count(attributes, _ANSWER_TOKENS)


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
    sources = [span.attributes, *(event.data for event in span.events if event.name == _DETAILS)]
    for messages, answers in (
        *map(_from_attributes, sources),
        _from_events(span.events),
        _from_numbered_attributes(span.attributes),
    ):
        if messages and answers:
            return Content(
                messages=[chat_message_of(message) for message in messages],
                answer=answer_of_span_message(answers[0]),
                finish_reason=_finish_reason(answers[0], span.attributes),
            )
    return None


def has_content(event: SpanEvent) -> bool:
    """Return True if a log record has texts of a conversation. They are empty where capturing is off."""
    if event.name == _DETAILS:
        return "gen_ai.output.messages" in event.data
    if event.name == "gen_ai.choice":
        try:
            return _choice(event.data) is not None
        except ValueError:  # Cut short; its span will be rejected.
            return True
    return event.name in _MESSAGE_ROLES and bool(event.data.get("content") or event.data.get("tool_calls"))


_MESSAGE_ROLES = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}


def _from_attributes(data: Attributes) -> tuple[list[Any], list[Any]]:
    messages = message_list(data.get("gen_ai.input.messages"))
    if instructions := message_list(data.get("gen_ai.system_instructions")):
        messages = [{"role": "system", "parts": instructions}, *messages]
    return messages, message_list(data.get("gen_ai.output.messages"))


def _from_events(events: Sequence[SpanEvent]) -> tuple[list[Any], list[Any]]:
    messages: list[Any] = []
    answers: dict[int, Any] = {}
    for event in events:
        if event.name in _MESSAGE_ROLES:
            messages.append({"role": _MESSAGE_ROLES[event.name], "tool_call_id": event.data.get("id"), **event.data})
        elif event.name == "gen_ai.choice":
            if (choice := _choice(event.data)) is not None:
                answers.setdefault(_number(event.data.get("index")), choice)
        elif event.name == "gen_ai.content.prompt":
            messages += message_list(event.data.get("gen_ai.prompt"))
        elif event.name == "gen_ai.content.completion":
            answers |= dict(enumerate(message_list(event.data.get("gen_ai.completion"))))
    return messages, [answers[index] for index in sorted(answers)]


def _choice(data: Attributes) -> dict[str, Any] | None:
    """The message of a `gen_ai.choice`, with its finish reason; None if the texts were not captured."""
    message = data.get("message", data)
    if isinstance(message, str):
        message = next(iter(message_list(message)), {})
    if not isinstance(message, dict) or ("content" not in message and "tool_calls" not in message):
        return None
    return {**message, "finish_reason": data.get("finish_reason")}


def _from_numbered_attributes(attributes: Attributes) -> tuple[list[Any], list[Any]]:
    messages = numbered_messages(attributes, "gen_ai.prompt.") or numbered_messages(
        attributes, "llm.input_messages.", "message."
    )
    answers = numbered_messages(attributes, "gen_ai.completion.") or numbered_messages(
        attributes, "llm.output_messages.", "message."
    )
    return messages, answers


def _finish_reason(answer: Any, attributes: Attributes) -> str | None:
    reason = answer.get("finish_reason") if isinstance(answer, Mapping) else None
    reasons = attributes.get("gen_ai.response.finish_reasons")
    reason = reason or (reasons[0] if isinstance(reasons, list) and reasons else reasons)
    reason = reason or attributes.get("llm.finish_reason")
    return reason[:200].replace("\x00", "") or None if isinstance(reason, str) else None


def _first_text(attributes: Attributes, names: Iterable[str]) -> str | None:
    values = (attributes.get(name) for name in names)
    return next((value[:200] for value in values if isinstance(value, str) and "\x00" not in value and value), None)


def _count(attributes: Attributes, names: Iterable[str]) -> int:
    values = (attributes.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and 0 <= value < 2**31), 0)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
