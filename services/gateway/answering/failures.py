"""What ended a request without its answer, and what a client is told of a model server's failure."""

from __future__ import annotations

from typing import Any

import orjson

from schemas.conversation import FinishReason
from schemas.predictions import CLIENT_LEFT, GATEWAY_STOPPED
from services.gateway.asgi.exchange import Exchange
from services.gateway.upstreams.upstream import ModelNotServed, UpstreamFailed
from shared.http import HttpError


def cut_of(exchange: Exchange) -> tuple[int, FinishReason]:
    """Return the status and the finish reason of a request whose task was cancelled."""
    if exchange.client_left:
        return CLIENT_LEFT, FinishReason.CLIENT_LEFT
    return GATEWAY_STOPPED, FinishReason.GATEWAY_STOPPED


def client_error(error: UpstreamFailed, model: str) -> HttpError:
    """Return the error for the client, with the upstream's own body if that is in OpenAI's format."""
    if isinstance(error, ModelNotServed):
        return HttpError(502, f"no model server serves {model!r}, the task's base model", "upstream_not_served")
    headers = {"retry-after": f"{error.retry_after:.0f}"} if error.retry_after is not None else None
    found = HttpError(error.status, error.message, f"upstream_{error.reason}", headers=headers)
    if (body := _openai_error(error.raw)) is not None:
        found.body = body
    return found


def _openai_error(raw: bytes) -> dict[str, Any] | None:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    error = body.get("error") if isinstance(body, dict) else None
    return {"error": error} if isinstance(error, dict) and isinstance(error.get("message"), str) else None
