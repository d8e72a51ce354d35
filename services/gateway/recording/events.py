"""The record of a request's observation, encoded without pydantic: what it would check holds by construction.

It is exactly what `RequestObserved.model_validate_json` reads.
"""

from __future__ import annotations

from datetime import UTC, datetime

import orjson

from schemas.catalog import topic_of
from schemas.conversation import FinishReason
from schemas.predictions import RequestObserved
from services.gateway.recording.builder import event_id_text
from services.gateway.recording.request import InFlightRequest
from services.gateway.routing.arms import Arm
from shared.spool import Record

_OBSERVATIONS = topic_of(RequestObserved).name


def request_observed(
    request: InFlightRequest,
    arm: Arm,
    status: int,
    latency_ms: float,
    confidence: float | None = None,
    cut_by: FinishReason | None = None,
) -> Record:
    """The record of the request's RequestObserved. `cut_by`: who ended it before its answer had ended."""
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
        "user_hash": request.caller.user_hash,
        "subject": request.caller.subject,
        "status": status,
        "gateway_stopped": cut_by is FinishReason.GATEWAY_STOPPED,
        "latency_ms": latency_ms,
        "confidence": confidence,
    }
    value = orjson.dumps(event, option=orjson.OPT_UTC_Z)
    return Record(_OBSERVATIONS, prediction_id.encode(), value, request.caller.trace)
