"""The events of an answered request, encoded without pydantic: what it would check holds by construction.

The records are exactly what `PredictionLogged.model_validate_json` and `RequestObserved.model_validate_json` read.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import orjson

from schemas.catalog import topic_of
from schemas.predictions import PredictionLogged, RequestObserved
from services.gateway.formats.api import ApiAnswer
from services.gateway.formats.rendering import storable_text
from services.gateway.recording.request import InFlightRequest
from services.gateway.routing.arms import Arm
from shared.identity import NAMESPACE
from shared.model.confidence import Measure
from shared.spool import Record

_PREDICTIONS = topic_of(PredictionLogged).name
_OBSERVATIONS = topic_of(RequestObserved).name
_SHA1 = hashlib.sha1(NAMESPACE.bytes, usedforsecurity=False)
_MAX_FINISH_REASON = 200


def event_id_text(*parts: str) -> str:
    """`shared.identity.event_id` as text, at a fifth of its cost."""
    digest = _SHA1.copy()
    digest.update("\x1f".join(parts).encode())
    h = digest.hexdigest()
    variant = "89ab"[int(h[16], 16) & 3]
    return f"{h[:8]}-{h[8:12]}-5{h[13:16]}-{variant}{h[17:20]}-{h[20:32]}"


def prediction_logged(
    request: InFlightRequest,
    arm: Arm,
    answer: ApiAnswer,
    number: int,
    confidence: Measure,
    latency_ms: float,
    missing_finish_reason: str | None = None,
) -> Record:
    """The record of the PredictionLogged of choice `number` of the answer.

    `missing_finish_reason` stands for the finish reason of a choice that has none.
    """
    task, prediction_id, choice = request.task, request.prediction_ids[number], answer.choices[number]
    finish_reason = choice.finish_reason or missing_finish_reason
    event = {
        "event_id": event_id_text("predictions.logged", prediction_id),
        "occurred_at": datetime.now(UTC),
        "task": task.name,
        "task_revision": task.revision,
        "cycle_id": None,
        "prediction_id": prediction_id,
        "messages": request.parsed.messages_for_event(number),
        "answer": storable_text(choice.text),
        "model": arm.model_name(task.spec.base_model),
        "adapter": arm.adapter,
        "variant": arm.variant,
        "confidence": confidence.as_dict(),
        "user_hash": request.user_hash,
        "latency_ms": latency_ms,
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": answer.answer_tokens if len(answer.choices) == 1 else len(choice.tokens),
        "finish_reason": finish_reason[:_MAX_FINISH_REASON] if finish_reason else None,
        "redactions": 0,
    }
    return Record(_PREDICTIONS, prediction_id.encode(), orjson.dumps(event, option=orjson.OPT_UTC_Z), request.trace)


def request_observed(
    request: InFlightRequest, arm: Arm, status: int, latency_ms: float, confidence: float | None = None
) -> Record:
    """The record of the request's RequestObserved."""
    prediction_id = request.prediction_ids[0]
    event = {
        "event_id": event_id_text("requests.observed", prediction_id, arm.variant),
        "occurred_at": datetime.now(UTC),
        "task": request.task.name,
        "task_revision": request.task.revision,
        "cycle_id": None,
        "prediction_id": prediction_id,
        "variant": arm.variant,
        "adapter": arm.adapter,
        "user_hash": request.user_hash,
        "status": status,
        "latency_ms": latency_ms,
        "confidence": confidence,
    }
    return Record(_OBSERVATIONS, prediction_id.encode(), orjson.dumps(event, option=orjson.OPT_UTC_Z), request.trace)
