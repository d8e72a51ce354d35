"""Converts a span to the records it is logged as. Pure, but for the clock."""

from __future__ import annotations

from datetime import UTC, datetime

from schemas.base import Variant, utc_now
from schemas.predictions import RequestObserved
from services.gateway.formats.api import TokenUsage
from services.gateway.formats.media import MediaReferences
from services.gateway.recording.builder import LoggedAnswer
from services.gateway.recording.event_log import encode_event
from services.gateway.recording.external import external_call, external_prediction
from services.gateway.tasks.served import ServedTask
from services.gateway.telemetry.genai import Content, content_of, model_of, status_of, tokens_of
from services.gateway.telemetry.spans import Span
from shared.identity import event_id
from shared.spool import Record
from shared.tracing import PARENT, TraceHeaders


def records_of_span(
    span: Span, task: ServedTask, prediction_id: str, user_hash: str | None, media: MediaReferences
) -> list[Record] | None:
    """A prediction and an observation, or only an observation if the call failed; None if the span has no messages.

    They continue the span's trace, and their event ids depend only on the span. Raises ValueError, HttpError 400 for
    messages that an event cannot carry.
    """
    observed = RequestObserved(
        event_id=event_id("requests.observed", prediction_id, Variant.EXTERNAL),
        occurred_at=_end_time(span),
        task=task.name,
        task_revision=task.revision,
        prediction_id=prediction_id,
        variant=Variant.EXTERNAL,
        user_hash=user_hash,
        status=status_of(span),
        latency_ms=max(0, span.ended_ns - span.started_ns) / 1e6 if span.started_ns else 0.0,
    )
    trace = ((PARENT, f"00-{span.trace_id}-{span.span_id}-01".encode()),)
    if span.failed:
        return [encode_event(observed, trace)]
    if (content := content_of(span)) is None:
        return None
    return [_prediction(span, observed, content, media, trace), encode_event(observed, trace)]


def _prediction(
    span: Span, observed: RequestObserved, content: Content, media: MediaReferences, trace: TraceHeaders
) -> Record:
    prompt_tokens, answer_tokens = tokens_of(span.attributes)
    choice = content.answer
    return external_prediction(
        observed.task,
        observed.task_revision,
        external_call(content.messages, media),
        LoggedAnswer(
            observed.prediction_id, choice.text, choice.tool_calls, choice.refusal, choice.reasoning,
            content.finish_reason, tokens=answer_tokens,
        ),
        model=model_of(span.attributes) or "external",
        usage=TokenUsage(prompt_tokens, answer_tokens),
        latency_ms=observed.latency_ms,
        user_hash=observed.user_hash,
        occurred_at=observed.occurred_at,
        trace=trace,
    )  # fmt: skip


def _end_time(span: Span) -> datetime:
    """The end of the call; at most now, whatever the application's clock says."""
    now = utc_now()
    return min(datetime.fromtimestamp(span.ended_ns / 1e9, UTC), now) if 0 < span.ended_ns < 2**62 else now
