"""The one builder of `PredictionLogged`, whoever sends the call: the gateway, an application, a span, Kafka.

It is made without pydantic, and fits a Kafka record by construction: the call is cut before the upstream is asked, the
answers to what the call has left. What is cut is marked. NUL, which no database stores as text, is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson

from schemas.base import MAX_EVENT_BYTES, Variant
from schemas.catalog import topic_of
from schemas.conversation import FinishReason
from schemas.predictions import PredictionLogged
from services.gateway.formats.api import TokenUsage
from services.gateway.formats.calls import without_credentials_of
from services.gateway.formats.conversation import Object
from services.gateway.json_codec import encode_json, replace_big_integers
from services.gateway.recording.names import calls_with_short_names, with_short_names
from shared.answers.measure import UNKNOWN, ConfidenceMeasure
from shared.conversation.truncation import cut_answer, cut_call
from shared.identity import NAMESPACE
from shared.spool import Record
from shared.tracing import TraceHeaders

_PREDICTIONS = topic_of(PredictionLogged).name
_SHA1 = hashlib.sha1(NAMESPACE.bytes, usedforsecurity=False)
_CALL_SHARE = 0.75
"""Of an event's bytes; its answers have the rest, and what a shorter call leaves."""
_NUL = b"u0000"
"""Found in a tenth of the time that the whole escape takes; a text that has it without an escape stays as it is."""
_ESCAPE = b"\\"
"""One byte is found at twenty times the speed of several, and many a text has nothing to escape."""
_ESCAPE_BYTES = 6
"""The most bytes that JSON needs for a character."""
_FINISH_REASONS = {reason.value: reason.value for reason in FinishReason} | {
    "function_call": "tool_calls", "tool_call": "tool_calls", "tool_use": "tool_calls", "end_turn": "stop",
    "stop_sequence": "stop", "complete": "stop", "max_tokens": "length", "model_context_window_exceeded": "length",
    "refusal": "content_filter", "safety": "content_filter", "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
}  # fmt: skip
"""The contract's words, and those of OpenTelemetry, Anthropic, Bedrock, Cohere and Gemini for them, in lower case."""
OLDEST, NEWEST = timedelta(days=-92), timedelta(hours=1)
"""When a prediction may have been made, seen from its arrival: Kafka keeps predictions for so long, and a clock that is
this much ahead is wrong."""
_NO_USAGE = TokenUsage()
try:
    GATEWAY_VERSION: str | None = version("ratchet-loop")
except PackageNotFoundError:  # Run from a checkout that is not installed.
    GATEWAY_VERSION = None


@dataclass(slots=True)
class LoggedRequest:
    """All that an event says of an answered request, but its answers. `call`: from `encode_call`."""

    task: str
    task_revision: str
    request_id: str
    call: bytes
    model: str
    adapter: str | None = None
    variant: str = Variant.EXTERNAL
    usage: TokenUsage = _NO_USAGE
    latency_ms: float = 0.0
    user_hash: str | None = None
    session_hash: str | None = None
    subject: str | None = None
    app: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    occurred_at: datetime | None = None
    trace: TraceHeaders = ()


@dataclass(slots=True)
class RecordedAnswer:
    """One answer. `finish_reason`: the upstream's word; one that the contract does not have becomes `other`.

    `truncated`: it had something that the event cannot say.
    """

    prediction_id: str
    text: str
    tool_calls: Sequence[Object] = ()
    refusal: str | None = None
    reasoning: str | None = None
    finish_reason: str | None = None
    confidence: ConfidenceMeasure = UNKNOWN
    tokens: int = 0
    truncated: bool = False


def encode_call(call: Object, max_bytes: int = MAX_EVENT_BYTES) -> bytes:
    """The JSON of a call as an event of `max_bytes` has it. Raises HttpError 400 if it cannot be encoded."""
    try:
        encoded = orjson.dumps(call)
    except TypeError:
        encode_json(call)  # Refuses what is nested too deeply. The rest has integers of more than 64 bits, which no
        # reader of the event could write again.
        call = {**replace_big_integers(call, float), "truncated": True}
        encoded = orjson.dumps(call)
    if (tools := call.get("tools")) and (shown := without_credentials_of(tools)) is not tools:
        call = {**call, "tools": shown, "truncated": True}
        encoded = encode_json(call)
    if _ESCAPE in encoded and _NUL in encoded and (cleaned := without_nul(call)) != call:
        call = {**cleaned, "truncated": True}
        encoded = encode_json(call)
    if (messages := with_short_names(call["messages"])) is not call["messages"]:
        call = {**call, "messages": messages, "truncated": True}
        encoded = encode_json(call)
    limit = int(max_bytes * _CALL_SHARE)
    return encoded if len(encoded) <= limit else orjson.dumps(cut_call(call, limit))


def prediction_logged(
    request: LoggedRequest, answers: Sequence[RecordedAnswer], max_bytes: int = MAX_EVENT_BYTES
) -> Record:
    """The record of a request's answers."""
    budget = max(max_bytes - len(request.call), 0) // max(len(answers), 1)
    prompt, answered, cached, reasoning = request.usage
    event = {
        "event_id": event_id_text("predictions.logged", request.request_id),
        "occurred_at": request.occurred_at or datetime.now(UTC),
        "task": request.task,
        "task_revision": request.task_revision,
        "cycle_id": None,
        "request_id": request.request_id,
        "call": orjson.Fragment(request.call),
        "answers": [_answer(answer, budget) for answer in answers],
        "model": request.model,
        "adapter": request.adapter,
        "variant": request.variant,
        "usage": {
            "prompt_tokens": prompt,
            "answer_tokens": answered,
            "cached_tokens": cached,
            "reasoning_tokens": reasoning,
        },
        "user_hash": request.user_hash,
        "session_hash": request.session_hash,
        "subject": request.subject,
        "app": request.app,
        "metadata": request.metadata,
        "gateway_version": GATEWAY_VERSION,
        "latency_ms": request.latency_ms,
        "redactions": 0,
    }
    value = orjson.dumps(event, option=orjson.OPT_UTC_Z)
    return Record(_PREDICTIONS, request.request_id.encode(), value, request.trace)


def finish_reason_of(reason: str | None) -> str | None:
    """The contract's word for the reason that an upstream or an application gives."""
    if reason is None:
        return None
    return _FINISH_REASONS.get(reason) or _FINISH_REASONS.get(reason.lower(), FinishReason.OTHER.value)


def event_id_text(*parts: str) -> str:
    """`shared.identity.event_id` as text, at a fifth of its cost."""
    digest = _SHA1.copy()
    digest.update("\x1f".join(parts).encode())
    h = digest.hexdigest()
    variant = "89ab"[int(h[16], 16) & 3]
    return f"{h[:8]}-{h[8:12]}-5{h[13:16]}-{variant}{h[17:20]}-{h[20:32]}"


def without_nul(value: Any) -> Any:
    """A copy of a value of JSON in which no text has a NUL. One of NUL alone is not empty then: names may not be."""
    if isinstance(value, str):
        return value.replace("\x00", "") or ("\ufffd" if value else "")
    if isinstance(value, dict):
        return {without_nul(name): without_nul(inner) for name, inner in value.items()}
    return [without_nul(inner) for inner in value] if isinstance(value, list | tuple) else value


def _answer(answer: RecordedAnswer, budget: int) -> Object:
    confidence = answer.confidence.as_dict()
    if fields := confidence.get("fields"):
        if (size := len(orjson.dumps(fields))) > budget // 2:
            del confidence["fields"]  # What was answered comes first, and the score is that of the least sure one.
        else:
            budget -= size
    content: Object = {"text": answer.text}
    if answer.truncated:
        content["truncated"] = True
    if answer.tool_calls:
        content["tool_calls"] = calls_with_short_names(answer.tool_calls)
        if content["tool_calls"] is not answer.tool_calls:
            content["truncated"] = True
    if answer.refusal is not None:
        content["refusal"] = answer.refusal
    if answer.reasoning is not None:
        content["reasoning"] = answer.reasoning
    if answer.tool_calls or answer.reasoning or answer.refusal or _may_not_fit(answer.text, budget):
        content = _fitting(content, budget)
    content["prediction_id"] = answer.prediction_id
    content["finish_reason"] = finish_reason_of(answer.finish_reason)
    content["confidence"] = confidence
    content["tokens"] = answer.tokens
    return content


def _may_not_fit(text: str, budget: int) -> bool:
    return _ESCAPE_BYTES * len(text) > budget or "\x00" in text


def _fitting(content: Object, budget: int) -> Object:
    """The answer's content, cut to fit and without NUL."""
    if _NUL in orjson.dumps(content) and (cleaned := without_nul(content)) != content:
        content = {**cleaned, "truncated": True}
    return cut_answer(content, budget)
