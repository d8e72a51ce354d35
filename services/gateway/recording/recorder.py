"""Records what became of a request before the client gets its answer: a prediction for each choice, one observation.

produces  predictions.logged · requests.observed
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from schemas.adapters import Calibration
from services.gateway.formats.api import ApiAnswer
from services.gateway.observability.metrics import Metrics
from services.gateway.observability.rate_limited_log import RateLimitedWarning
from services.gateway.recording.event_log import EventLog
from services.gateway.recording.events import prediction_logged, request_observed
from services.gateway.recording.request import InFlightRequest
from services.gateway.routing.arms import Arm
from services.gateway.upstreams.upstream import UpstreamFailed
from shared.model.confidence import Measure, measure
from shared.spool import SpoolUnavailable

logger = logging.getLogger(__name__)


class CalibrationLookup(Protocol):
    def get(self, adapter: str | None) -> Calibration | None:
        """The calibration published for the adapter, if it is in memory."""


class Recorder:
    """Appends a request's events to the spool. `answer_when_full`: answer without a record while it takes none."""

    def __init__(
        self,
        log: EventLog,
        metrics: Metrics,
        calibrations: CalibrationLookup | None = None,
        answer_when_full: bool = False,
    ) -> None:
        self._log = log
        self._metrics = metrics
        self._calibrations = calibrations
        self._answer_when_full = answer_when_full
        self._external_warning = RateLimitedWarning(logger)

    def measure_confidence(self, request: InFlightRequest, arm: Arm, answer: ApiAnswer) -> list[Measure]:
        """The confidence of each choice."""
        calibration = self._calibrations.get(arm.adapter) if self._calibrations is not None else None
        return [measure(request.task.spec, choice.tokens, calibration) for choice in answer.choices]

    async def record_answer(
        self,
        request: InFlightRequest,
        arm: Arm,
        answer: ApiAnswer,
        confidences: Sequence[Measure],
        *,
        status: int = 200,
        missing_finish_reason: str | None = None,
    ) -> bool:
        """Record the answer's predictions and the request's observation; they are in the spool when this returns True.

        Returns False if the spool took no record and `answer_when_full` is set, else raises SpoolUnavailable.
        """
        latency_ms = request.exchange.seconds * 1000.0
        records = [
            prediction_logged(request, arm, answer, number, confidence, latency_ms, missing_finish_reason)
            for number, confidence in enumerate(confidences)
        ]
        records.append(
            request_observed(request, arm, status, latency_ms, confidences[0].score if confidences else None)
        )
        try:
            await self._log.append(records)
        except SpoolUnavailable:
            if not self._answer_when_full:
                raise
            self._metrics.answers_unlogged.inc()
            return False
        request.task.answers[arm.variant].inc()
        return True

    async def record_observation(self, request: InFlightRequest, arm: Arm, status: int) -> None:
        """Record an attempt without predictions: a failure, or embeddings. Never raises, so that the client gets its
        own error, not the spool's."""
        try:
            await self._log.append([request_observed(request, arm, status, request.exchange.seconds * 1000.0)])
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
