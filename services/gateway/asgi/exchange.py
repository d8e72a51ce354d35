"""One request and its answer as the hot routes see them: raw, without a framework. Made by `door.py`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

Headers = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

CLIENT_LEFT = 499
"""The status, as nginx counts it, of a request whose client did not wait for the answer."""
_JSON = (b"content-type", b"application/json")
_EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


class Reply(NamedTuple):
    """A whole answer. `headers` has the content's type, not its length."""

    status: int
    headers: Headers
    body: bytes


class Exchange:
    """A request whose body is read. An endpoint returns a `Reply`, or streams through `begin` and `write`."""

    __slots__ = ("_send", "begun", "body", "ended", "headers", "started")

    def __init__(self, headers: Headers, send: Send) -> None:
        self.headers = headers
        self._send = send
        self.body = b""
        self.started = time.perf_counter()
        self.begun = False
        self.ended = False

    @property
    def seconds(self) -> float:
        """Since the request arrived."""
        return time.perf_counter() - self.started

    async def begin(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Begin a stream of server-sent events: status 200, these headers beside the usual ones."""
        self.begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": [*_EVENTS, *headers]})

    async def write(self, events: bytes, *, last: bool = False) -> None:
        """Send server-sent events, whole ones; the last end the answer."""
        self.ended = last
        await self._send({"type": "http.response.body", "body": events, "more_body": not last})


class Endpoint(Protocol):
    async def __call__(self, call: Exchange) -> Reply | None:
        """Answer; None: it was streamed. Raises HttpError and `shared.errors` before a stream has begun."""


def json_reply(body: Any, headers: Sequence[tuple[bytes, bytes]] = (), status: int = 200) -> Reply:
    """`body` as JSON: anything that orjson takes, or bytes that are JSON."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return Reply(status, [_JSON, *headers], raw)


def error_event(body: Mapping[str, Any]) -> bytes:
    """An error in the midst of a stream, as OpenAI's clients know it."""
    return b"data: " + orjson.dumps(body) + b"\n\n"
