"""Reads what an application sends of an answer that it got elsewhere: the bodies of /v1/predictions. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from schemas.base import MAX_COUNT
from services.gateway.formats.api import Choice, TokenUsage
from services.gateway.formats.chat import prepare_messages
from services.gateway.formats.conversation import Object, tool_call, tool_call_of
from services.gateway.formats.media import MediaReferences
from services.gateway.formats.validation import MAX_OWN_ID, MAX_USER, bad_request, number_field, text_field
from services.gateway.recording.external import ExternalPredictions, ExternalReport, external_call
from services.gateway.tasks.served import ServedTask
from shared.answers.measure import ConfidenceMeasure
from shared.tracing import TraceHeaders

_MAX_NAME = 200
_CALL_FIELDS = ("tool_choice", "response_format")


def read_report(
    item: dict[str, Any],
    task: ServedTask,
    external: ExternalPredictions,
    app: str | None = None,
    trace: TraceHeaders = (),
) -> tuple[ExternalReport, MediaReferences]:
    """A prediction of the body, and what made its media's references. Raises HttpError 400 that names the field."""
    user, session = text_field(item, "user", MAX_USER), text_field(item, "session", MAX_USER)
    caller = external.caller(user, session, item.get("metadata"), app, trace, item.get("parameters"))
    media = external.media.keeping(task.name, caller.user_hash) if task.keeps_media else external.media
    added = prepare_messages(item, task)
    report = ExternalReport(
        task=task.name,
        task_revision=task.revision,
        call=external_call(item["messages"], media, added, **_call_fields(item)),
        answers=[_choice(item)],
        caller=caller,
        own_id=text_field(item, "prediction_id", MAX_OWN_ID) or None,
        model=text_field(item, "model", _MAX_NAME),
        adapter=text_field(item, "adapter", _MAX_NAME),
        confidence=ConfidenceMeasure(
            number_field(item, "confidence", 0.0, 1.0), number_field(item, "logprob", -1e9, 0.0)
        ),
        usage=TokenUsage(_count(item, "prompt_tokens"), _count(item, "answer_tokens")),
        latency_ms=number_field(item, "latency_ms", 0.0, 1e9, required=True) or 0.0,
        occurred_at=_time(item, "occurred_at"),
    )
    return report, media


def _call_fields(item: Mapping[str, Any]) -> Object:
    """The fields of the call beside its messages."""
    fields = {name: item[name] for name in _CALL_FIELDS if item.get(name) is not None}
    if (tools := item.get("tools")) is not None:
        fields["tools"] = _objects(tools, "tools")
    if (parameters := item.get("parameters")) is not None:
        if not isinstance(parameters, dict):
            raise bad_request("`parameters` must be an object", "parameters")
        fields["parameters"] = parameters
    return fields


def _choice(item: dict[str, Any]) -> Choice:
    """The answer: a text, calls of tools, or a refusal."""
    calls = [_tool_call(call) for call in _objects(item.get("tool_calls") or [], "tool_calls")]
    refusal = _text(item, "refusal")
    text = _text(item, "answer")
    if text is None and not calls and not refusal:
        raise bad_request("`answer` is missing", "answer")
    finish_reason = text_field(item, "finish_reason", _MAX_NAME) or None
    return Choice(text or "", (), finish_reason, calls, refusal or None, _text(item, "reasoning") or None)


def _tool_call(call: Mapping[str, Any]) -> Object:
    """A tool call as the chat API has it, or as events have it."""
    if "function" in call or "custom" in call:
        return tool_call_of(call)
    kind = "custom" if call.get("type") == "custom" else "function"
    return tool_call(call.get("name"), call.get("arguments"), call.get("id"), kind)


def _objects(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise bad_request(f"`{name}` must be a list of objects", name)
    return value


def _text(item: Mapping[str, Any], name: str) -> str | None:
    """A text of any length: the event has as much of it as fits, without NUL."""
    value = item.get(name)
    if value is not None and not isinstance(value, str):
        raise bad_request(f"`{name}` must be a string", name)
    return value


def _count(item: dict[str, Any], name: str) -> int:
    return int(number_field(item, name, 0, MAX_COUNT) or 0)


def _time(item: dict[str, Any], name: str) -> datetime | None:
    text = text_field(item, name, 64)
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise bad_request(f"`{name}` must be a time with its zone, such as 2026-11-23T03:00:00Z", name)
    return time
