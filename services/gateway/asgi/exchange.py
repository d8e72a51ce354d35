"""A request and its answer as the hot routes see them: raw, without a framework. Created by `app.py`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

Headers = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

CLIENT_LEFT = 499
"""The status, as in nginx, of a request whose client disconnected before the answer."""
_JSON_TYPE = (b"content-type", b"application/json")
_EVENT_STREAM_HEADERS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


class Reply(NamedTuple):
    """An answer in one piece. `headers` includes the content type, not the content length."""

    status: int
    headers: Headers
    body: bytes


class Exchange:
    """A request whose body has been read. An endpoint returns a `Reply`, or streams with `start_stream` and `write`."""

    __slots__ = ("_send", "_started_at", "body", "headers", "stream_ended", "stream_started")

    def __init__(self, headers: Headers, send: Send) -> None:
        self.headers = headers
        self._send = send
        self.body = b""
        self._started_at = time.perf_counter()
        self.stream_started = False
        self.stream_ended = False

    @property
    def seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self._started_at

    async def start_stream(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Start a stream of server-sent events with status 200 and these headers beside the usual ones."""
        self.stream_started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": [*_EVENT_STREAM_HEADERS, *headers]})

    async def write(self, events: bytes, *, last: bool = False) -> None:
        """Send whole server-sent events. `last` ends the answer."""
        self.stream_ended = last
        await self._send({"type": "http.response.body", "body": events, "more_body": not last})


class Endpoint(Protocol):
    async def __call__(self, exchange: Exchange) -> Reply | None:
        """Answer; return None after a stream. Raises HttpError and `shared.errors` before the stream has started."""


def json_reply(body: Any, headers: Sequence[tuple[bytes, bytes]] = (), status: int = 200) -> Reply:
    """A reply whose body is `body` as JSON; bytes must be JSON already."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return Reply(status, [_JSON_TYPE, *headers], raw)


def error_event(body: Mapping[str, Any]) -> bytes:
    """An error within a stream, in the form that OpenAI's clients expect."""
    return b"data: " + orjson.dumps(body) + b"\n\n"
