"""The events of an answer as Kafka will have them, written without pydantic: what it would check is so by construction.

`PredictionLogged.model_validate_json` and `RequestObserved.model_validate_json` read exactly what is said here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from schemas.base import Variant
from schemas.catalog import topic_of
from schemas.predictions import PredictionLogged, RequestObserved
from services.gateway.domain import ChatMessage
from services.gateway.formats.rendering import storable_text
from shared.identity import NAMESPACE
from shared.spool import Record

_PREDICTIONS = topic_of(PredictionLogged).name
_OBSERVATIONS = topic_of(RequestObserved).name
_SHA1 = hashlib.sha1(NAMESPACE.bytes, usedforsecurity=False)
_LONGEST_NAME = 200

TraceHeaders = tuple[tuple[str, bytes], ...]


def event_id_text(*parts: str) -> str:
    """`shared.identity.event_id` as text, at a fifth of its price."""
    digest = _SHA1.copy()
    digest.update("\x1f".join(parts).encode())
    h = digest.hexdigest()
    variant = "89ab"[int(h[16], 16) & 3]
    return f"{h[:8]}-{h[8:12]}-5{h[13:16]}-{variant}{h[17:20]}-{h[20:32]}"


def prediction(
    *,
    task: str,
    revision: str,
    prediction_id: str,
    messages: Sequence[ChatMessage],
    answer: str,
    model: str,
    adapter: str | None,
    variant: Variant,
    confidence: Mapping[str, Any],
    user_hash: str | None,
    latency_ms: float,
    prompt_tokens: int,
    answer_tokens: int,
    finish_reason: str | None,
    trace: TraceHeaders = (),
) -> Record:
    """PredictionLogged. `confidence`: the JSON of `schemas.predictions.Confidence`."""
    event = {
        "event_id": event_id_text("predictions.logged", prediction_id),
        "occurred_at": datetime.now(UTC),
        "task": task,
        "task_revision": revision,
        "cycle_id": None,
        "prediction_id": prediction_id,
        "messages": messages,
        "answer": storable_text(answer),
        "model": model,
        "adapter": adapter,
        "variant": variant,
        "confidence": confidence,
        "user_hash": user_hash,
        "latency_ms": latency_ms,
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "finish_reason": finish_reason[:_LONGEST_NAME] if finish_reason else None,
        "redactions": 0,
    }
    return Record(_PREDICTIONS, prediction_id.encode(), orjson.dumps(event, option=orjson.OPT_UTC_Z), trace)


def observation(
    *,
    task: str,
    revision: str,
    prediction_id: str,
    variant: Variant,
    adapter: str | None,
    user_hash: str | None,
    status: int,
    latency_ms: float,
    confidence: float | None = None,
    trace: TraceHeaders = (),
) -> Record:
    """RequestObserved."""
    event = {
        "event_id": event_id_text("requests.observed", prediction_id, variant),
        "occurred_at": datetime.now(UTC),
        "task": task,
        "task_revision": revision,
        "cycle_id": None,
        "prediction_id": prediction_id,
        "variant": variant,
        "adapter": adapter,
        "user_hash": user_hash,
        "status": status,
        "latency_ms": latency_ms,
        "confidence": confidence,
    }
    return Record(_OBSERVATIONS, prediction_id.encode(), orjson.dumps(event, option=orjson.OPT_UTC_Z), trace)
