"""Converts a span to the records it is logged as. Pure, but for the clock."""

from __future__ import annotations

from datetime import UTC, datetime

from schemas.base import Variant
from schemas.predictions import RequestObserved
from services.gateway.recording.event_log import encode_event
from services.gateway.recording.external import ExternalPredictions, ExternalReport, external_call
from services.gateway.recording.request import Caller
from services.gateway.tasks.served import ServedTask
from services.gateway.telemetry.genai import Content, content_of, status_of
from services.gateway.telemetry.genai_call import call_fields_of, model_of, session_of, usage_of, user_of
from services.gateway.telemetry.spans import Span
from shared.identity import event_id
from shared.spool import Record
from shared.tracing import PARENT

_MAX_NS = 2**62
_NO_MESSAGES = (
    "no messages: set OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=span_only in the application, with "
    "opentelemetry-instrumentation-openai-v2 also OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental"
)


def records_of_span(
    span: Span, task: ServedTask, external: ExternalPredictions, app: str | None = None
) -> list[Record]:
    """A prediction and an observation, or only an observation if the call failed.

    They continue the span's trace, and their event ids depend only on the span. Raises ValueError for a span without
    messages, ValueError and HttpError 400 for what an event cannot carry. `app`: the name of the sender's key.
    """
    trace = ((PARENT, f"00-{span.trace_id}-{span.span_id}-01".encode()),)
    caller = external.caller(user_of(span.attributes), session_of(span.attributes), None, app, trace)
    observed = _observed(span, task, external, caller)
    if span.failed:
        return [encode_event(observed, trace)]
    if (content := content_of(span)) is None:
        raise ValueError(_NO_MESSAGES)
    _, record = external.record(_report(span, observed, content, external, caller))
    return [record, encode_event(observed, trace)]


def own_id(span: Span) -> str:
    """What the application calls the answer."""
    return f"{span.trace_id}-{span.span_id}"


def _observed(span: Span, task: ServedTask, external: ExternalPredictions, caller: Caller) -> RequestObserved:
    (prediction_id,) = external.prediction_ids(task.name, own_id(span))
    return RequestObserved(
        event_id=event_id("requests.observed", prediction_id, Variant.EXTERNAL),
        occurred_at=external.time_of(_end_time(span) or external.now()),
        task=task.name,
        task_revision=task.revision,
        prediction_id=prediction_id,
        variant=Variant.EXTERNAL,
        user_hash=caller.user_hash,
        status=status_of(span),
        latency_ms=max(0, span.ended_ns - span.started_ns) / 1e6 if span.started_ns else 0.0,
    )


def _report(
    span: Span, observed: RequestObserved, content: Content, external: ExternalPredictions, caller: Caller
) -> ExternalReport:
    return ExternalReport(
        task=observed.task,
        task_revision=observed.task_revision,
        call=external_call(content.messages, external.media, **call_fields_of(span.attributes)),
        answers=content.answers,
        caller=caller,
        own_id=own_id(span),
        model=model_of(span.attributes),
        usage=usage_of(span.attributes),
        latency_ms=observed.latency_ms,
        occurred_at=observed.occurred_at,
    )


def _end_time(span: Span) -> datetime | None:
    """The end of the call; None if the span does not say it."""
    return datetime.fromtimestamp(span.ended_ns / 1e9, UTC) if 0 < span.ended_ns < _MAX_NS else None
