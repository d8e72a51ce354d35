"""Converts a span to the events it is logged as. Pure, but for the clock."""

from __future__ import annotations

from datetime import UTC, datetime

from schemas.base import Event, Message, Role, Variant, utc_now
from schemas.predictions import PredictionLogged, RequestObserved
from services.gateway.formats.rendering import check_message_count, storable_text
from services.gateway.tasks.served import ServedTask
from services.gateway.telemetry.genai import Content, content_of, model_of, status_of, tokens_of
from services.gateway.telemetry.spans import Span
from shared.identity import event_id


def events_of_span(span: Span, task: ServedTask, prediction_id: str, user_hash: str | None) -> list[Event] | None:
    """A prediction and an observation, or only an observation if the call failed; None if the span has no messages.

    Event ids depend only on the span. Raises ValueError, HttpError 400 for messages that an event cannot carry.
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
    if span.failed:
        return [observed]
    if (content := content_of(span)) is None:
        return None
    return [_prediction(span, observed, content), observed]


def _prediction(span: Span, observed: RequestObserved, content: Content) -> PredictionLogged:
    check_message_count(content.messages, "messages")
    prompt_tokens, answer_tokens = tokens_of(span.attributes)
    return PredictionLogged(
        event_id=event_id("predictions.logged", observed.prediction_id),
        occurred_at=observed.occurred_at,
        task=observed.task,
        task_revision=observed.task_revision,
        prediction_id=observed.prediction_id,
        messages=tuple(Message(role=Role(message["role"]), content=message["content"]) for message in content.messages),
        answer=storable_text(content.answer),
        model=model_of(span.attributes) or "external",
        variant=Variant.EXTERNAL,
        user_hash=observed.user_hash,
        latency_ms=observed.latency_ms,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        finish_reason=content.finish_reason,
    )


def _end_time(span: Span) -> datetime:
    """The end of the call; at most now, whatever the application's clock says."""
    now = utc_now()
    return min(datetime.fromtimestamp(span.ended_ns / 1e9, UTC), now) if 0 < span.ended_ns < 2**62 else now
