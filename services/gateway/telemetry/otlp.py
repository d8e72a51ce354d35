"""OTLP/HTTP in: `/v1/traces`, and `/v1/logs` for messages that come as log records. What is in them: `traces.py`.

As the protocol asks (https://opentelemetry.io/docs/specs/otlp/#otlphttp): protobuf or JSON, plain or gzip; the answer
comes as the request did; an error is a google.rpc.Status; 429 and 503 mean that the same may be sent again.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from services.gateway.auth.grants import Grant
from services.gateway.telemetry.ingest import ExportResult, TelemetryIngest
from services.gateway.telemetry.spans import MalformedTelemetry
from shared.errors import DependencyUnavailable
from shared.http import HttpError

_JSON, _PROTOBUF = "application/json", "application/x-protobuf"
OTLP_PATHS = ("/v1/traces", "/v1/logs")
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 413: 11, 415: 3, 429: 8, 503: 14}
"""google.rpc.Code by HTTP status: INVALID_ARGUMENT, UNAUTHENTICATED, …; any other is INTERNAL."""
_INTERNAL = 13
_GZIP = 16 + zlib.MAX_WBITS

Take = Callable[..., Awaitable[ExportResult]]


class Keys(Protocol):
    """Who may send: `services.gateway.auth.grants.AccessControl`."""

    def grant(self, headers: Any, size: int = 0) -> Grant: ...


def build_router(traces: TelemetryIngest, keys: Keys, max_unpacked_bytes: int) -> APIRouter:
    """The two routes. The longest body is for the application's limit to say, its length when unpacked for this."""
    router = APIRouter()
    responses: dict[int | str, dict[str, Any]] = {
        200: {"description": "Taken; `partialSuccess` says of how many spans or records not, and why."},
        400: {"description": "No OTLP: never send it again."},
        503: {"description": "Send the same again."},
    }

    async def answer(request: Request, take: Take, signal: str, response: Any) -> Response:
        as_json = _media_type(request.headers.get("content-type", "")) == _JSON
        try:
            raw = await request.body()
            grant = keys.grant(request.scope["headers"], len(raw))
            _check_type(request)
            body = _unpacked(raw, request.headers.get("content-encoding", ""), max_unpacked_bytes)
            return _told(await take(body, grant, as_json=as_json), signal, response, as_json)
        except MalformedTelemetry as error:
            return _status(400, str(error), as_json)
        except DependencyUnavailable as error:
            return _status(503, f"{error.reason}. {error.way_out}".strip(), as_json, {"retry-after": "2"})
        except HttpError as error:
            return _status(error.status, str(error), as_json, error.headers)

    @router.post("/v1/traces", responses=responses)
    async def spans(request: Request) -> Response:
        """Spans with `gen_ai.*` attributes, as OpenTelemetry's exporters send them, become predictions."""
        return await answer(request, traces.ingest_spans, "rejectedSpans", ExportTraceServiceResponse())

    @router.post("/v1/logs", responses=responses)
    async def logs(request: Request) -> Response:
        """Log records with messages of spans, from instrumentations that do not write them on the span."""
        return await answer(request, traces.ingest_logs, "rejectedLogRecords", ExportLogsServiceResponse())

    return router


def _media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


def _check_type(request: Request) -> None:
    told = _media_type(request.headers.get("content-type", ""))
    if told not in (_JSON, _PROTOBUF):
        raise HttpError(415, f"the content type is {told[:100]!r}; {_PROTOBUF} and {_JSON} are taken", "media_type")


def _unpacked(body: bytes, encoding: str, longest: int) -> bytes:
    """The body without its compression. Raises MalformedTelemetry, HttpError 413: at `longest` bytes."""
    encoding = encoding.strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise HttpError(415, f"the content encoding is {encoding[:100]!r}; gzip is taken", "content_encoding")
    if encoding == "gzip":
        unpacker = zlib.decompressobj(_GZIP)
        try:
            body = unpacker.decompress(body, longest + 1)
        except zlib.error as error:
            raise MalformedTelemetry(f"the body is no gzip: {error}") from error
        if not unpacker.eof and len(body) <= longest:
            raise MalformedTelemetry("the body is no gzip: its end is missing")
    if len(body) > longest:
        message = f"the body is over the limit of {longest} bytes when unpacked: set a smaller batch in the exporter"
        raise HttpError(413, message, "body_too_large")
    return body


def _told(taken: ExportResult, signal: str, response: Any, as_json: bool) -> Response:
    if as_json:
        partial = {signal: str(taken.rejected), "errorMessage": taken.message}
        return Response(orjson.dumps({"partialSuccess": partial} if taken.message else {}), media_type=_JSON)
    if taken.message:
        told = response.partial_success
        told.error_message = taken.message
        setattr(told, "rejected_spans" if signal == "rejectedSpans" else "rejected_log_records", taken.rejected)
    return Response(response.SerializeToString(), media_type=_PROTOBUF)


def _status(status: int, message: str, as_json: bool, headers: dict[str, str] | None = None) -> Response:
    code = _CODES.get(status, _INTERNAL)
    if as_json:
        return Response(orjson.dumps({"code": code, "message": message}), status, headers, _JSON)
    body = Status(code=code, message=message).SerializeToString()
    return Response(body, status, headers, _PROTOBUF)
