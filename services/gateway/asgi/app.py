"""The front of the gateway: an ASGI application that serves the routes which answer, and leaves the rest to FastAPI.

A framework's routing, validation and responses cost more than all that the gateway does for an answer; so what answers
gets its body as bytes and gives bytes back. The rest (documentation, feedback, models, metrics, health) is not hot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from fastapi import FastAPI
from prometheus_client import Counter, Histogram
from starlette.types import Scope

from services.gateway.asgi.exchange import CLIENT_LEFT, Endpoint, Exchange, Receive, Reply, Send, json_reply
from services.gateway.observability.metrics import Metrics
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.http import HttpError

_PATIENCE_SECONDS = 0.05
"""After this long it is looked whether the client is still there: a look costs more than a quick answer may."""

logger = logging.getLogger(__name__)


class AsgiApp:
    """Give uvicorn this one. `app` is the FastAPI application behind it."""

    def __init__(self, app: FastAPI, endpoints: Mapping[str, Endpoint], metrics: Metrics, max_body_bytes: int) -> None:
        self.app = app
        self._routes = {path: _Route(path, endpoint, metrics) for path, endpoint in endpoints.items()}
        self._max = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            return await self.app(scope, receive, send)
        call = Exchange(scope["headers"], send)
        status = CLIENT_LEFT
        try:
            status = await self._serve(route, scope["method"], call, receive, send)
        finally:
            route.count(status, call.seconds)

    async def _serve(self, route: _Route, method: str, call: Exchange, receive: Receive, send: Send) -> int:
        """Serve one request; returns the status it is counted under."""
        watch = None
        try:
            if method != "POST":
                raise HttpError(405, "Method Not Allowed", "http_error", headers={"allow": "POST"})
            if not await self._read(call, receive):
                return CLIENT_LEFT
            watch = _Watch(receive)
            reply = await route.endpoint(call)
        except asyncio.CancelledError:
            if watch is None or not watch.ours():
                raise
            return 200 if call.ended else CLIENT_LEFT
        except Exception as error:  # noqa: BLE001 - `_as_reply` logs what nobody expected
            reply = _as_reply(error)
            if call.begun:
                if not call.ended:
                    await call.write(b"data: " + reply.body + b"\n\n", last=True)
                return reply.status
        finally:
            if watch is not None:
                watch.end()
        return await _send(send, reply) if reply is not None else 200

    async def _read(self, call: Exchange, receive: Receive) -> bool:
        """Read the body; False: the client left before it was whole. Raises HttpError 413."""
        for name, value in call.headers:
            if name == b"content-length" and value.isdigit() and (len(value) > 18 or int(value) > self._max):
                raise self._too_large()
        message = await receive()
        body: bytes = message.get("body", b"")
        while message.get("more_body") and len(body) <= self._max:
            message = await receive()
            body += message.get("body", b"")
        if len(body) > self._max:
            raise self._too_large()
        call.body = body
        return bool(message["type"] != "http.disconnect")

    def _too_large(self) -> HttpError:
        return HttpError(413, f"the request body is over the limit of {self._max} bytes", "body_too_large")


class _Route:
    """An endpoint, and its counters, which are looked up once."""

    def __init__(self, path: str, endpoint: Endpoint, metrics: Metrics) -> None:
        self.endpoint = endpoint
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


class _Watch:
    """Cancels the task that made it when the client leaves, so that the model server stops too."""

    __slots__ = ("_gone", "_looking", "_receive", "_task", "_timer")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task = asyncio.current_task()
        self._gone = False
        self._looking: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._begin)

    def _begin(self) -> None:
        self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def ours(self) -> bool:
        """Whether the cancellation that was caught was this one; then it is over."""
        if self._gone and self._task is not None:
            self._task.uncancel()
        return self._gone

    def end(self) -> None:
        self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()


async def _send(send: Send, reply: Reply) -> int:
    reply.headers.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
    await send({"type": "http.response.body", "body": reply.body})
    return reply.status


def _as_reply(error: Exception) -> Reply:
    """An error in OpenAI's shape, as `shared.http` gives it behind FastAPI."""
    if isinstance(error, HttpError):
        return json_reply(error.body, [(k.encode(), v.encode()) for k, v in error.headers.items()], error.status)
    if isinstance(error, DependencyUnavailable):
        return _as_reply(HttpError(503, f"{error.reason}. {error.way_out}".strip(), "unavailable"))
    if isinstance(error, InvalidMessage):
        return _as_reply(HttpError(422, f"{error.reason}. {error.way_out}".strip(), "invalid_request"))
    logger.error("a request failed by a mistake of ours", exc_info=error)
    return _as_reply(HttpError(500, "the gateway failed; its log says why", "internal_error"))
