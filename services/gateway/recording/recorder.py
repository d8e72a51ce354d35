"""Records what became of a request before the client gets its answer: the call with all its answers, one observation.

produces  predictions.logged · requests.observed
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from schemas.base import MAX_EVENT_BYTES
from schemas.conversation import FinishReason
from services.gateway.formats.api import ApiAnswer, ApiRequest, Choice, TokenUsage
from services.gateway.formats.conversation import asked_text, opening_text
from services.gateway.formats.media import InlineMedia, MediaReferences
from services.gateway.observability.metrics import Metrics
from services.gateway.observability.rate_limited_log import RateLimitedWarning
from services.gateway.recording.builder import LoggedRequest, RecordedAnswer, encode_call, prediction_logged
from services.gateway.recording.event_log import SpoolEventLog
from services.gateway.recording.events import request_observed
from services.gateway.recording.request import InFlightRequest
from services.gateway.routing.arms import Arm
from services.gateway.routing.calibration import CalibrationCache
from services.gateway.upstreams.upstream import UpstreamFailed
from shared.answers.measure import ConfidenceMeasure
from shared.conversation.question_text import has_second_opinion
from shared.model.confidence import measure
from shared.spool import Record, SpoolUnavailable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordingOptions:
    """`answer_when_full`: answer without a record while the spool takes none. `event_bytes`: the most of an event's
    texts; what is longer is cut."""

    answer_when_full: bool = False
    event_bytes: int = MAX_EVENT_BYTES


class EncodedCalls(NamedTuple):
    """What a request's events say was asked, cut to fit. `media`: what is to be kept of it. `opening`: what the first
    of its conversations begins with, as it was sent; None for a request without one. `questions`: what a second opinion
    reads of each conversation, where answers have one."""

    calls: list[bytes]
    media: Collection[InlineMedia] | None
    opening: str | None
    questions: Sequence[str] = ()


class Recorder:
    """Appends a request's events to the spool."""

    def __init__(
        self,
        log: SpoolEventLog,
        metrics: Metrics,
        media: MediaReferences,
        calibrations: CalibrationCache | None = None,
        options: RecordingOptions = RecordingOptions(),
    ) -> None:
        self._log = log
        self._metrics = metrics
        self._media = media
        self._calibrations = calibrations
        self._options = options
        self._external_warning = RateLimitedWarning(logger)

    def encode_calls(self, parsed: ApiRequest, user_hash: str | None, *, external: bool = False) -> EncodedCalls:
        """What the request's events say was asked, before the upstream is asked, the external API if `external`. Raises
        HttpError 400."""
        task = parsed.task
        media = self._media.keeping(task.name, user_hash) if task.keeps_media else self._media
        calls = parsed.calls(media, external=external)
        encoded = [encode_call(call, self._options.event_bytes) for call in calls]
        opening = opening_text(calls[0]["messages"]) if calls else None
        questions = [asked_text(call["messages"]) for call in calls] if has_second_opinion(task.spec) else ()
        return EncodedCalls(encoded, media.collected, opening, questions)

    def measure_confidence(self, request: InFlightRequest, arm: Arm, answer: ApiAnswer) -> list[ConfidenceMeasure]:
        """The confidence of each choice."""
        found = self._calibrations.get(arm.adapter) if self._calibrations is not None else None
        spec, choices = request.task.spec, answer.choices
        if found is None:
            return [measure(spec, choice.tokens) for choice in choices]
        if found.opinion is None or not request.questions:
            return [measure(spec, choice.tokens, found.calibration) for choice in choices]
        each = request.parsed.prediction_count // len(request.questions)
        opinions = [found.opinion_on(question) for question in request.questions]
        return [measure(spec, choice.tokens, found.calibration, opinions[choice.number // each]) for choice in choices]

    async def record_answer(
        self,
        request: InFlightRequest,
        arm: Arm,
        answer: ApiAnswer,
        confidences: Sequence[ConfidenceMeasure],
        *,
        status: int = 200,
        cut_by: FinishReason | None = None,
    ) -> bool:
        """Record the answer's predictions and the request's observation: they are in the spool, and kept media beside
        it, when this returns True.

        `cut_by`: who ended an answer that has no finish reason of its own. Returns False if the spool took no record
        and `answer_when_full` is set, else raises SpoolUnavailable.
        """
        latency_ms = request.exchange.seconds * 1000.0
        records = self._predictions(request, arm, answer, confidences, latency_ms, cut_by)
        score = confidences[0].score if confidences else None
        records.append(request_observed(request, arm, status, latency_ms, score, cut_by))
        try:
            await self._log.append(records, request.media)
        except SpoolUnavailable:
            if not self._options.answer_when_full:
                raise
            self._metrics.answers_unlogged.inc()
            return False
        request.task.answers[arm.variant].inc()
        return True

    def _predictions(
        self,
        request: InFlightRequest,
        arm: Arm,
        answer: ApiAnswer,
        confidences: Sequence[ConfidenceMeasure],
        latency_ms: float,
        cut_by: FinishReason | None,
    ) -> list[Record]:
        """The record of each of the request's conversations, with its answers."""
        calls, choices, each = request.calls, answer.choices, request.parsed.prediction_count // len(request.calls)
        records = []
        for number, call in enumerate(calls):
            answers = [
                _answer(request.prediction_ids[choice.number], choice, confidence, cut_by, len(choices), answer.usage)
                for choice, confidence in zip(choices, confidences, strict=True)
                if choice.number // each == number
            ]  # fmt: skip
            if not answers:
                continue
            logged = _request(request, arm, call, answer.usage, latency_ms)
            if len(calls) > 1:
                logged.request_id = f"{request.request_id}-{number}"
                logged.usage = TokenUsage(
                    prompt_tokens=_share(answer.usage.prompt_tokens, number, len(calls)),
                    answer_tokens=sum(a.tokens for a in answers),
                    cached_tokens=_share(answer.usage.cached_tokens, number, len(calls)),
                )
            records.append(prediction_logged(logged, answers, self._options.event_bytes))
        return records

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


def _request(request: InFlightRequest, arm: Arm, call: bytes, usage: TokenUsage, latency_ms: float) -> LoggedRequest:
    task, caller = request.task, request.caller
    return LoggedRequest(
        task.name, task.revision, request.request_id, call, arm.model_name(task.spec.base_model), arm.adapter,
        arm.variant, usage, latency_ms, caller.user_hash, caller.session_hash, caller.subject, caller.app,
        caller.metadata,
        trace=caller.trace,
    )  # fmt: skip


def _share(total: int, number: int, count: int) -> int:
    """Return the share of one of `count` prompts in tokens that were counted together."""
    return total // count + (number < total % count)


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
