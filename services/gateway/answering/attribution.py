"""Tells the client who answered: response headers, and the `ratchet` object at the end of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from services.gateway.asgi.exchange import Headers
from services.gateway.recording.request import InFlightRequest
from services.gateway.routing.arms import Arm
from shared.model.confidence import Measure


def attribution_headers(request: InFlightRequest, arm: Arm) -> Headers:
    """The headers that name the prediction, the variant and the adapter. The ids of several answers, in order, have a
    header of their own."""
    headers = [
        (b"x-ratchet-prediction-id", request.prediction_ids[0].encode()),
        (b"x-ratchet-variant", _header_value(arm.variant)),
        (b"x-ratchet-adapter", _header_value(arm.adapter or "")),
    ]
    if len(request.prediction_ids) > 1:
        headers.append((b"x-ratchet-prediction-ids", ",".join(request.prediction_ids).encode()))
    if request.instead_of is not None:
        headers.append((b"x-ratchet-instead-of", _header_value(request.instead_of.variant)))
    return headers


def attribution_object(
    request: InFlightRequest, arm: Arm, confidences: Sequence[Measure], logged: bool
) -> dict[str, Any]:
    """The same for the end of a stream, with the confidence of the answer."""
    attribution: dict[str, Any] = {
        "prediction_id": request.prediction_ids[0],
        "variant": arm.variant,
        "adapter": arm.adapter,
        "confidence": confidences[0].score if confidences else None,
    }
    if len(request.prediction_ids) > 1:
        attribution["choices"] = [
            {"prediction_id": prediction_id, "confidence": confidence.score}
            for prediction_id, confidence in zip(request.prediction_ids, confidences, strict=False)
        ]
    if not logged:
        attribution["logged"] = False
    return attribution


@lru_cache(maxsize=1_000)
def _header_value(text: str) -> bytes:
    """Text as a header may carry it: a flag's payload is typed by people."""
    return "".join(c if " " <= c <= "~" else "?" for c in text).encode()
