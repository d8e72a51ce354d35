"""The gateway's ASGI application: serves the hot routes, those that answer, and passes the rest to FastAPI.

A framework's routing, validation and responses cost more than everything that the gateway does for an answer. So a hot
route gets its body as bytes and returns bytes. Documentation, feedback, models, metrics and health checks are not hot.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from prometheus_client import Counter, Histogram
from starlette.types import Scope

from schemas.predictions import CLIENT_LEFT, GATEWAY_STOPPED
from services.gateway.asgi.admission import RequestAdmission
from services.gateway.asgi.exchange import ON_DISCONNECT, Endpoint, ErrorFormat, Exchange, Headers, Receive, Reply, Send
from services.gateway.asgi.in_flight import HeldBytes
from services.gateway.asgi.propagation import answer_headers, sent_request_id
from services.gateway.observability.metrics import Metrics
from services.gateway.observability.tracing import event_headers
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.http import HttpError
from shared.identity import random_id

logger = logging.getLogger(__name__)


class AsgiApp:
    """The application that uvicorn runs. `app` is the FastAPI application for all other routes.

    `error_formats`: of the paths whose errors are not in OpenAI's format.
    """

    def __init__(
        self,
        app: FastAPI,
        endpoints: Mapping[str, Endpoint],
        metrics: Metrics,
        admission: RequestAdmission,
        error_formats: Mapping[str, ErrorFormat] = MappingProxyType({}),
    ) -> None:
        self.app = app
        self._routes = {
            path: _Route(path, endpoint, metrics, error_formats.get(path)) for path, endpoint in endpoints.items()
        }
        self._admission = admission
        self._metrics = metrics
        metrics.body_bytes.set_function(lambda: admission.in_flight.total)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            return await self._pass_on(scope, receive, send)
        exchange = Exchange(scope["headers"], send, route.error_format)
        held = self._admission.hold()
        status = GATEWAY_STOPPED  # What cancels it but the client is the end of the process.
        try:
            status = await self._serve(route, scope, exchange, held, receive, send)
        finally:
            held.release()
            route.count(status, exchange.seconds)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have FastAPI answer, under the request's id and trace, and count the request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, started, status = scope["headers"], time.perf_counter(), 500
        ids = answer_headers(sent_request_id(headers) or random_id().encode(), event_headers(headers))

        async def send_with_ids(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *ids]
            await send(message)

        try:
            await self.app(scope, receive, send_with_ids)
        finally:
            # The route's pattern, which FastAPI stores in the scope: an invented path must not become a label.
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _serve(
        self, route: _Route, scope: Scope, exchange: Exchange, held: HeldBytes, receive: Receive, send: Send
    ) -> int:
        """Serve one request. Returns the status under which it is counted."""
        try:
            if scope["method"] != "POST":
                raise HttpError(405, "Method Not Allowed", "http_error", headers={"allow": "POST"})
            exchange.grant = self._admission.grant(exchange.headers)
            body = await self._admission.read(exchange.grant, held, exchange.headers, receive)
            if body is None:
                return CLIENT_LEFT
            exchange.body, exchange.size = body, len(body)
            _watch(scope, exchange)
            reply = await route.endpoint(exchange)
        except asyncio.CancelledError:
            if not exchange.client_left or (task := asyncio.current_task()) is None:
                raise
            task.uncancel()
            return CLIENT_LEFT
        except Exception as error:  # noqa: BLE001 - `_http_error` logs an unexpected one
            failure = _http_error(error)
            if exchange.stream_started:
                if not exchange.ended:
                    await exchange.end_with_error(failure.status, failure.body)
                return failure.status
            reply = exchange.error_reply(failure.status, failure.body, failure.headers)
        exchange.ended = True
        return await _send(send, reply, exchange.id_headers) if reply is not None else 200


class _Route:
    """An endpoint with its counters, whose labels are resolved once."""

    def __init__(self, path: str, endpoint: Endpoint, metrics: Metrics, error_format: ErrorFormat | None) -> None:
        self.endpoint = endpoint
        self.error_format = error_format
        self._path = path
        self._requests = metrics.requests
        self._seconds: Histogram = metrics.seconds.labels(path)
        self._by_status: dict[int, Counter] = {}

    def count(self, status: int, seconds: float) -> None:
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._by_status[status] = self._requests.labels(self._path, str(status))
        counter.inc()
        self._seconds.observe(seconds)


def _watch(scope: Scope, exchange: Exchange) -> None:
    """Have this task cancelled when the client disconnects, so that the model server stops, too.

    A disconnect after the last write cancels nothing: the task may still be reading the end of the model server's
    response. Servers but our own do not tell.
    """
    task = asyncio.current_task()

    def leave() -> None:
        if task is not None and not exchange.ended:
            exchange.client_left = True
            task.cancel()

    if (on_disconnect := scope.get("extensions", {}).get(ON_DISCONNECT)) is not None:
        on_disconnect(leave)


async def _send(send: Send, reply: Reply, id_headers: Headers) -> int:
    reply.headers.extend(id_headers)
    reply.headers.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
    await send({"type": "http.response.body", "body": reply.body})
    return reply.status


def _http_error(error: Exception) -> HttpError:
    """What the client is told of an error, the same as `shared.http` gives for FastAPI's routes."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, DependencyUnavailable | InvalidMessage):
        status, code = (503, "unavailable") if isinstance(error, DependencyUnavailable) else (422, "invalid_request")
        return HttpError(status, f"{error.reason}. {error.way_out}".strip(), code)
    logger.error("internal error", exc_info=error)
    return HttpError(500, "the gateway failed; its log says why", "internal_error")
