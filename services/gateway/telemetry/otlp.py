"""The OTLP/HTTP route `/v1/traces`.

The protocol (https://opentelemetry.io/docs/specs/otlp/#otlphttp): protobuf or JSON, plain or gzip; a response has the
request's format; an error is a google.rpc.Status; 429 and 503 ask the client to retry.
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from services.gateway.asgi.admission import RequestAdmission
from services.gateway.telemetry.ingest import ExportResult, TelemetryIngest
from services.gateway.telemetry.spans import MalformedTelemetry
from shared.errors import DependencyUnavailable
from shared.http import HttpError

_JSON, _PROTOBUF = "application/json", "application/x-protobuf"
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 413: 11, 415: 3, 429: 8, 503: 14}
"""google.rpc.Code by HTTP status: INVALID_ARGUMENT, UNAUTHENTICATED, …; any other status is INTERNAL."""
_INTERNAL = 13


def build_router(telemetry: TelemetryIngest, admission: RequestAdmission) -> APIRouter:
    """The route. A body may have four times as many bytes after gzip as before."""
    router, max_bytes = APIRouter(), admission.limits.telemetry
    responses: dict[int | str, dict[str, Any]] = {
        200: {"description": "Accepted; `partialSuccess` has the number of rejected spans, and the reasons."},
        400: {"description": "Not valid OTLP. Do not retry."},
        503: {"description": "Temporarily unavailable. Retry."},
    }

    @router.post("/v1/traces", responses=responses)
    async def spans(request: Request) -> Response:
        """Log spans with `gen_ai.*` attributes, as OpenTelemetry exporters send them, as predictions."""
        as_json = _media_type(request.headers.get("content-type", "")) == _JSON
        try:
            headers, receive = request.headers.raw, request.receive
            async with admission.body_of(headers, receive, max_bytes, 4 * max_bytes) as (grant, body):
                _check_type(request)
                return _response(await telemetry.ingest(body, grant, as_json=as_json), as_json)
        except MalformedTelemetry as error:
            return _error(400, str(error), as_json)
        except DependencyUnavailable as error:
            return _error(503, f"{error.reason}. {error.way_out}".strip(), as_json, {"retry-after": "2"})
        except HttpError as error:
            return _error(error.status, str(error), as_json, error.headers)

    return router


def _media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


def _check_type(request: Request) -> None:
    media_type = _media_type(request.headers.get("content-type", ""))
    if media_type not in (_JSON, _PROTOBUF):
        message = f"unsupported content type {media_type[:100]!r}: use {_PROTOBUF} or {_JSON}"
        raise HttpError(415, message, "media_type")


def _response(result: ExportResult, as_json: bool) -> Response:
    if as_json:
        partial = {"rejectedSpans": str(result.rejected), "errorMessage": result.message}
        return Response(orjson.dumps({"partialSuccess": partial} if result.rejected else {}), media_type=_JSON)
    response = ExportTraceServiceResponse()
    if result.rejected:
        response.partial_success.rejected_spans = result.rejected
        response.partial_success.error_message = result.message
    return Response(response.SerializeToString(), media_type=_PROTOBUF)


def _error(status: int, message: str, as_json: bool, headers: dict[str, str] | None = None) -> Response:
    code = _CODES.get(status, _INTERNAL)
    if as_json:
        return Response(orjson.dumps({"code": code, "message": message}), status, headers, _JSON)
    body = Status(code=code, message=message).SerializeToString()
    return Response(body, status, headers, _PROTOBUF)
