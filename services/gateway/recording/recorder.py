"""Records what became of a request before the client gets its answer: the call with all its answers, one observation.

produces  predictions.logged · requests.observed
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from schemas.base import MAX_EVENT_BYTES
from schemas.conversation import FinishReason
from services.gateway.formats.api import ApiAnswer, ApiRequest, Choice, TokenUsage
from services.gateway.formats.conversation import asked_text, opening_text
from services.gateway.formats.media import MediaReferences
from services.gateway.observability.metrics import Metrics
from services.gateway.observability.rate_limited_log import RateLimitedWarning
from services.gateway.recording.builder import LoggedRequest, RecordedAnswer, encode_call, prediction_logged
from services.gateway.recording.event_log import SpoolEventLog
from services.gateway.recording.events import request_observed
from services.gateway.recording.request import EncodedCall, InFlightRequest
from services.gateway.routing.arms import Arm
from services.gateway.routing.calibration import CalibrationCache
from services.gateway.upstreams.upstream import UpstreamFailed
from shared.answers.measure import ConfidenceMeasure
from shared.conversation.question_text import has_second_opinion
from shared.model.confidence import measure
from shared.spool import SpoolUnavailable

logger = logging.getLogger(__name__)


class Recorder:
    """Appends a request's events to the spool. `event_bytes`: the most of an event's texts; what is longer is cut."""

    def __init__(
        self,
        log: SpoolEventLog,
        metrics: Metrics,
        media: MediaReferences,
        calibrations: CalibrationCache | None = None,
        event_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        self._log = log
        self._metrics = metrics
        self._media = media
        self._calibrations = calibrations
        self._event_bytes = event_bytes
        self._external_warning = RateLimitedWarning(logger)

    def encode_call(self, parsed: ApiRequest, user_hash: str | None) -> EncodedCall:
        """What the request's event says was asked, before the upstream is asked. Raises HttpError 400."""
        task = parsed.task
        media = self._media.keeping(task.name, user_hash) if task.keeps_media else self._media
        call = parsed.call(media)
        if call is None:
            return EncodedCall()
        question = asked_text(call["messages"]) if has_second_opinion(task.spec) else None
        encoded = encode_call(call, self._event_bytes)
        return EncodedCall(encoded, media.collected, opening_text(call["messages"]), question)

    def measure_confidence(self, request: InFlightRequest, arm: Arm, answer: ApiAnswer) -> list[ConfidenceMeasure]:
        """The confidence of each choice."""
        found = self._calibrations.get(arm.adapter) if self._calibrations is not None else None
        calibration = opinion = None
        if found is not None:
            calibration, question = found.calibration, request.asked.question
            opinion = found.opinion_on(question) if found.opinion is not None and question is not None else None
        return [measure(request.task.spec, choice.tokens, calibration, opinion) for choice in answer.choices]

    async def record_answer(
        self,
        request: InFlightRequest,
        arm: Arm,
        answer: ApiAnswer,
        confidences: Sequence[ConfidenceMeasure],
        *,
        status: int = 200,
        cut_by: FinishReason | None = None,
    ) -> None:
        """Record the answer's predictions and the request's observation: they are in the spool, and kept media beside
        it, when this returns.

        `cut_by`: who ended an answer that has no finish reason of its own. Raises SpoolUnavailable.
        """
        latency_ms = request.exchange.seconds * 1000.0
        choices, records = answer.choices, []
        answers = [
            _answer(request.prediction_ids[choice.number], choice, confidence, cut_by, len(choices), answer.usage)
            for choice, confidence in zip(choices, confidences, strict=True)
        ]
        if answers:
            logged = _request(request, arm, answer.usage, latency_ms)
            records.append(prediction_logged(logged, answers, self._event_bytes))
        score = confidences[0].score if confidences else None
        records.append(request_observed(request, arm, status, latency_ms, score, cut_by))
        await self._log.append(records, request.asked.media)
        request.task.answers[arm.variant].inc()

    async def record_observation(
        self, request: InFlightRequest, arm: Arm, status: int, cut_by: FinishReason | None = None
    ) -> None:
        """Record an attempt without predictions: a failure, or embeddings. Never raises, so that the client gets its
        own error, not the spool's."""
        latency_ms = request.exchange.seconds * 1000.0
        try:
            await self._log.append([request_observed(request, arm, status, latency_ms, cut_by=cut_by)])
        except SpoolUnavailable:
            self._metrics.observations_dropped.inc()

    def count_fallback(self, request: InFlightRequest, arm: Arm) -> None:
        """Count an arm whose adapter no replica serves."""
        self._metrics.fallbacks.labels(request.task.name, arm.variant).inc()

    def count_external(self, request: InFlightRequest, error: UpstreamFailed) -> None:
        """Count and log a request that leaves for the external API, because of this error of our replicas."""
        self._metrics.external_requests.labels(request.task.name, error.reason).inc()
        self._external_warning.log(
            "a prompt of the task %s leaves for the external API: %s", request.task.name, error.reason
        )


def _request(request: InFlightRequest, arm: Arm, usage: TokenUsage, latency_ms: float) -> LoggedRequest:
    task, caller = request.task, request.caller
    return LoggedRequest(
        task.name, task.revision, request.request_id, request.asked.call, arm.model_name(task.spec.base_model),
        arm.adapter, arm.variant, usage, latency_ms, caller.user_hash, caller.session_hash, caller.subject, caller.app,
        caller.metadata,
        trace=caller.trace,
    )  # fmt: skip


def _answer(
    prediction_id: str,
    choice: Choice,
    confidence: ConfidenceMeasure,
    cut_by: FinishReason | None,
    choices: int,
    usage: TokenUsage,
) -> RecordedAnswer:
    return RecordedAnswer(
        prediction_id, choice.text, choice.tool_calls, choice.refusal, choice.reasoning,
        choice.finish_reason or cut_by, confidence, usage.answer_tokens if choices == 1 else len(choice.tokens),
        choice.truncated,
    )  # fmt: skip
