"""What is kept of a request, before the client hears: a prediction for each answer, and what was observed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from schemas.adapters import Calibration
from services.gateway.asgi.exchange import Exchange, Headers
from services.gateway.formats.api import ApiAnswer, ApiRequest
from services.gateway.observability.metrics import Metrics
from services.gateway.recording.event_log import EventLog
from services.gateway.recording.events import TraceHeaders, observation, prediction
from services.gateway.routing.arms import Arm
from services.gateway.tasks.served import ServedTask
from shared.model.confidence import Measure, measure
from shared.spool import SpoolFull


class CalibrationLookup(Protocol):
    def of(self, adapter: str | None) -> Calibration | None:
        """The calibration that travels with the adapter, if it is known: a look into memory."""


class InFlightRequest:
    """One request while it is answered. `ids`: of its predictions; without any, the one it is observed under."""

    __slots__ = ("asked", "call", "facts", "ids", "instead_of", "trace", "user_hash")

    def __init__(
        self,
        call: Exchange,
        facts: ServedTask,
        asked: ApiRequest,
        ids: Sequence[str],
        user_hash: str | None,
        trace: TraceHeaders,
    ) -> None:
        self.call = call
        self.facts = facts
        self.asked = asked
        self.ids = ids
        self.user_hash = user_hash
        self.trace = trace
        self.instead_of: Arm | None = None


class Recorder:
    """`answer_when_full`: an answer may leave although there was no room for it in the log."""

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

    def measured(self, one: InFlightRequest, arm: Arm, outcome: ApiAnswer) -> list[Measure]:
        """How sure each answer is."""
        calibration = self._calibrations.of(arm.adapter) if self._calibrations is not None else None
        return [measure(one.facts.spec, choice.tokens, calibration) for choice in outcome.choices]

    async def answered(
        self,
        one: InFlightRequest,
        arm: Arm,
        outcome: ApiAnswer,
        measures: Sequence[Measure],
        *,
        status: int = 200,
        cut: str | None = None,
    ) -> bool:
        """Whether all predictions, and what was observed of the request, are kept. Raises SpoolFull.

        `cut`: why answers without a finish reason have none.
        """
        facts, asked, trace = one.facts, one.asked, one.trace
        latency_ms = one.call.seconds * 1000.0
        model = arm.model_name(facts.spec.base_model)
        answers = list(zip(one.ids, outcome.choices, measures, strict=False))
        records = [
            prediction(
                task=facts.name,
                revision=facts.revision,
                prediction_id=prediction_id,
                messages=asked.messages_for_event(number),
                answer=choice.text,
                model=model,
                adapter=arm.adapter,
                variant=arm.variant,
                confidence=sure.as_dict(),
                user_hash=one.user_hash,
                latency_ms=latency_ms,
                prompt_tokens=outcome.prompt_tokens,
                answer_tokens=outcome.answer_tokens if len(answers) == 1 else len(choice.tokens),
                finish_reason=choice.finish_reason or cut,
                trace=trace,
            )
            for number, (prediction_id, choice, sure) in enumerate(answers)
        ]
        records.append(_observed(one, arm, status, latency_ms, measures[0].score if measures else None))
        try:
            await self._log.append(records)
        except SpoolFull:
            if not self._answer_when_full:
                raise
            self._metrics.answers_unlogged.inc()
            return False
        facts.answers[arm.variant].inc()
        return True

    async def observed(self, one: InFlightRequest, arm: Arm, status: int) -> None:
        """Keep that this arm gave no answer that is kept. Never raises: the client must hear of its own failure."""
        try:
            await self._log.append([_observed(one, arm, status, one.call.seconds * 1000.0)])
        except SpoolFull:
            self._metrics.observations_dropped.inc()


def headers_of(one: InFlightRequest, arm: Arm) -> Headers:
    """Who answers, for the client. The ids of several answers, in order, are in a header of their own."""
    headers = [
        (b"x-ratchet-prediction-id", one.ids[0].encode()),
        (b"x-ratchet-variant", _value(arm.variant)),
        (b"x-ratchet-adapter", _value(arm.adapter or "")),
    ]
    if len(one.ids) > 1:
        headers.append((b"x-ratchet-prediction-ids", ",".join(one.ids).encode()))
    if one.instead_of is not None:
        headers.append((b"x-ratchet-instead-of", _value(one.instead_of.variant)))
    return headers


def ratchet_of(one: InFlightRequest, arm: Arm, measures: Sequence[Measure], kept: bool) -> dict[str, Any]:
    """The same at the end of a stream, with how sure the answer is."""
    told: dict[str, Any] = {
        "prediction_id": one.ids[0],
        "variant": arm.variant,
        "adapter": arm.adapter,
        "confidence": measures[0].score if measures else None,
    }
    if len(one.ids) > 1:
        scores = [{"prediction_id": name, "confidence": m.score} for name, m in zip(one.ids, measures, strict=False)]
        told["choices"] = scores
    if not kept:
        told["logged"] = False
    return told


def _observed(one: InFlightRequest, arm: Arm, status: int, latency_ms: float, score: float | None = None) -> Any:
    return observation(
        task=one.facts.name,
        revision=one.facts.revision,
        prediction_id=one.ids[0],
        variant=arm.variant,
        adapter=arm.adapter,
        user_hash=one.user_hash,
        status=status,
        latency_ms=latency_ms,
        confidence=score,
        trace=one.trace,
    )


@lru_cache(maxsize=1_000)
def _value(text: str) -> bytes:
    """As a header may have it: a flag's payload is typed by people."""
    return "".join(c if " " <= c <= "~" else "?" for c in text).encode()
