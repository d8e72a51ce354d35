"""What a model was asked and answered, out of a span: OpenTelemetry's GenAI conventions, new and old. Pure.

Where the texts are, by convention, first found wins:
- attributes `gen_ai.input.messages`, `gen_ai.output.messages`, `gen_ai.system_instructions`, of the span, or of its
  event `gen_ai.client.inference.operation.details` (https://github.com/open-telemetry/semantic-conventions-genai);
- events `gen_ai.user.message` … and `gen_ai.choice` (conventions before 1.37), or `gen_ai.content.prompt` and
  `gen_ai.content.completion` (before 1.28);
- attributes with numbers: `gen_ai.prompt.0.content` (OpenLLMetry), `llm.input_messages.0.message.content`
  (OpenInference).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.gateway.domain import ChatMessage
from services.gateway.formats.rendering import messages_of
from services.gateway.telemetry.genai_messages import answer_of_span_message, chat_message_of, gathered, items
from services.gateway.telemetry.spans import Attributes, Span, SpanEvent

_OPERATIONS = frozenset({"chat", "text_completion", "generate_content", "completion"})
_KINDS = frozenset({"gen_ai.operation.name", "openinference.span.kind", "llm.request.type"})
_DETAILS = "gen_ai.client.inference.operation.details"
_TOKENS_IN = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_TOKENS_OUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
_MODELS = ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name", "llm.request.model")
_USERS = ("enduser.id", "user.id", "enduser.pseudo.id", "gen_ai.user", "llm.user")
_STATUSES = {
    "BadRequestError": 400, "AuthenticationError": 401, "PermissionDeniedError": 403, "NotFoundError": 404,
    "ConflictError": 409, "UnprocessableEntityError": 422, "RateLimitError": 429, "APITimeoutError": 504,
    "APIConnectionError": 502, "timeout": 504,
}  # fmt: skip
"""The status behind `error.type`, as the clients of OpenAI and Anthropic name their errors; any other is a 500."""


@dataclass(frozen=True, slots=True)
class Content:
    """The conversation, what was answered to it, and why the answer ended."""

    messages: list[ChatMessage]
    answer: str
    finish_reason: str | None = None


def may_be_generation(names: set[str]) -> bool:
    """Whether a span with attributes of these names can be an answer of a model."""
    return not _KINDS.isdisjoint(names)


def is_generation(attributes: Attributes) -> bool:
    """Whether the span is one answer of a model: no embedding, no tool, no agent around other answers."""
    operation = attributes.get("gen_ai.operation.name") or attributes.get("llm.request.type")
    if operation is None:
        return attributes.get("openinference.span.kind") == "LLM"
    return isinstance(operation, str) and operation in _OPERATIONS


def model_of(attributes: Attributes) -> str | None:
    return _first_text(attributes, _MODELS)


def user_of(attributes: Attributes) -> str | None:
    """A conversation's id is nobody's: people are forgotten by what is found here."""
    return _first_text(attributes, _USERS)


def response_id_of(attributes: Attributes) -> str | None:
    return _first_text(attributes, ("gen_ai.response.id", "llm.response.id"))


def tokens_of(attributes: Attributes) -> tuple[int, int]:
    """Tokens of the prompt and of the answer; 0 where it is not told."""
    return _count(attributes, _TOKENS_IN), _count(attributes, _TOKENS_OUT)


def status_of(span: Span) -> int:
    """The HTTP status that the call came to, as far as the span says."""
    told = span.attributes.get("http.response.status_code")
    if isinstance(told, int) and 100 <= told <= 599:
        return told
    if not span.failed:
        return 200
    kind = str(span.attributes.get("error.type", "")).rpartition(".")[2]
    if kind.isdecimal() and 400 <= int(kind[:4]) <= 599:
        return int(kind)
    return _STATUSES.get(kind, 500)


def content_of(span: Span) -> Content | None:
    """What was asked and answered; None if the span does not have both.

    Raises ValueError for texts that cannot be read, HttpError 400 for those that no event can carry.
    """
    sources = [span.attributes, *(event.data for event in span.events if event.name == _DETAILS)]
    for messages, answers in (*map(_from_attributes, sources), _from_events(span.events), _numbered(span.attributes)):
        if messages and answers:
            return Content(
                messages=messages_of([chat_message_of(item) for item in messages]),
                answer=answer_of_span_message(answers[0]),
                finish_reason=_finish_reason(answers[0], span.attributes),
            )
    return None


def is_content(said: SpanEvent) -> bool:
    """Whether a log record has texts of a conversation; without leave to capture them they come empty."""
    if said.name == _DETAILS:
        return "gen_ai.output.messages" in said.data
    if said.name == "gen_ai.choice":
        try:
            return _choice(said.data) is not None
        except ValueError:  # Cut short: its span will be rejected for it.
            return True
    return said.name in _ASKED and bool(said.data.get("content") or said.data.get("tool_calls"))


_ASKED = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}


def _from_attributes(data: Attributes) -> tuple[list[Any], list[Any]]:
    messages = items(data.get("gen_ai.input.messages"))
    if instructions := items(data.get("gen_ai.system_instructions")):
        messages = [{"role": "system", "parts": instructions}, *messages]
    return messages, items(data.get("gen_ai.output.messages"))


def _from_events(events: Sequence[SpanEvent]) -> tuple[list[Any], list[Any]]:
    messages: list[Any] = []
    answers: dict[int, Any] = {}
    for event in events:
        if event.name in _ASKED:
            messages.append({"role": _ASKED[event.name], "tool_call_id": event.data.get("id"), **event.data})
        elif event.name == "gen_ai.choice":
            if (choice := _choice(event.data)) is not None:
                answers.setdefault(_number(event.data.get("index")), choice)
        elif event.name == "gen_ai.content.prompt":
            messages += items(event.data.get("gen_ai.prompt"))
        elif event.name == "gen_ai.content.completion":
            answers |= dict(enumerate(items(event.data.get("gen_ai.completion"))))
    return messages, [answers[index] for index in sorted(answers)]


def _choice(data: Attributes) -> dict[str, Any] | None:
    """A `gen_ai.choice` with its message beside why it ended; None if the texts were not captured."""
    message = data.get("message", data)
    if isinstance(message, str):
        message = next(iter(items(message)), {})
    if not isinstance(message, dict) or ("content" not in message and "tool_calls" not in message):
        return None
    return {**message, "finish_reason": data.get("finish_reason")}


def _numbered(attributes: Attributes) -> tuple[list[Any], list[Any]]:
    asked = gathered(attributes, "gen_ai.prompt.") or gathered(attributes, "llm.input_messages.", "message.")
    told = gathered(attributes, "gen_ai.completion.") or gathered(attributes, "llm.output_messages.", "message.")
    return asked, told


def _finish_reason(answer: Any, attributes: Attributes) -> str | None:
    told = answer.get("finish_reason") if isinstance(answer, Mapping) else None
    reasons = attributes.get("gen_ai.response.finish_reasons")
    told = told or (reasons[0] if isinstance(reasons, list) and reasons else reasons)
    told = told or attributes.get("llm.finish_reason")
    return told[:200].replace("\x00", "") or None if isinstance(told, str) else None


def _first_text(attributes: Attributes, names: Iterable[str]) -> str | None:
    found = (attributes.get(name) for name in names)
    return next((value[:200] for value in found if isinstance(value, str) and "\x00" not in value and value), None)


def _count(attributes: Attributes, names: Iterable[str]) -> int:
    found = (attributes.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and 0 <= value < 2**31), 0)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
