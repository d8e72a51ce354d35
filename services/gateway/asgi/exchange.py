"""A request and its answer as the hot routes see them: raw, without a framework. Created by `app.py`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from services.gateway.asgi.propagation import answer_headers, sent_request_id, upstream_lines
from services.gateway.auth.grants import UNRESTRICTED, Grant
from services.gateway.observability.tracing import event_headers
from shared.identity import random_id
from shared.tracing import TraceHeaders

Headers = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

ON_DISCONNECT = "ratchet.on_disconnect"
"""Our server's extension of ASGI: takes what is to be called if the client leaves before its answer has left. Asking
`receive` for that took a task and a timer for each request."""
_JSON_TYPE = (b"content-type", b"application/json")
EVENT_STREAM = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


class Reply(NamedTuple):
    """An answer in one piece. `headers` includes the content type, not the content length."""

    status: int
    headers: Headers
    body: bytes


ErrorFormat = Callable[[int, Mapping[str, Any], str], dict[str, Any]]
"""Makes an API's error of its status, of the error in OpenAI's format, and of the request's id."""


class Exchange:
    """A request whose body has been read. An endpoint returns a `Reply`, or streams with `start_stream` and `write`.

    `grant`: what its key may do. `request_id`: the gateway's own, unique. `shown_id`: the `x-request-id` of the answer
    and of the request to the model server: the client's, or else the gateway's. `size`: bytes of the body, which may
    have been let go. `error_format`: None for OpenAI's. `client_left`: the client disconnected before its answer had
    ended, which cancels the task that answers; what else cancels it is the gateway's stop. `ended`: the answer's end is
    sent, or about to be.
    """

    __slots__ = (
        "_error_format", "_send", "_started_at", "_trace", "body", "client_left", "ended", "grant", "headers",
        "request_id", "shown_id", "size", "stream_started",
    )  # fmt: skip

    def __init__(self, headers: Headers, send: Send, error_format: ErrorFormat | None = None) -> None:
        self.headers = headers
        self._send = send
        self._error_format = error_format
        self.body: bytes = b""
        self.size = 0
        self.grant: Grant = UNRESTRICTED
        self.request_id = random_id()
        self.shown_id = sent_request_id(headers) or self.request_id.encode()
        self._trace: TraceHeaders | None = None
        self._started_at = time.perf_counter()
        self.client_left = False
        self.stream_started = False
        self.ended = False

    @property
    def seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self._started_at

    @property
    def trace(self) -> TraceHeaders:
        """The trace headers that go on: the caller's or, with spans, those of the gateway's own span."""
        if self._trace is None:
            self._trace = event_headers(self.headers)
        return self._trace

    @property
    def upstream_headers(self) -> bytes:
        """The header lines of the request to the model server that are this request's own."""
        return upstream_lines(self.shown_id, self.trace)

    @property
    def id_headers(self) -> Headers:
        """The headers of the answer that have the request's id and trace. Anthropic's clients look for an id of their
        own name."""
        own = answer_headers(self.shown_id, self.trace)
        return own if self._error_format is None else [*own, (b"request-id", self.shown_id)]

    async def start_stream(
        self, headers: Sequence[tuple[bytes, bytes]], usual: Sequence[tuple[bytes, bytes]] = EVENT_STREAM
    ) -> None:
        """Start a stream with status 200, these headers and the `usual` ones: by default of server-sent events."""
        self.stream_started = True
        with_id = [*usual, *headers, *self.id_headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": with_id})

    async def write(self, events: bytes, *, last: bool = False) -> None:
        """Send whole server-sent events. `last` ends the answer."""
        self.ended = last
        await self._send({"type": "http.response.body", "body": events, "more_body": not last})

    async def end_with_error(self, status: int, body: Mapping[str, Any]) -> None:
        """End a stream with an error, of which `body` is OpenAI's form."""
        if self._error_format is None:
            event = b"data: %b\n\n" % orjson.dumps(body)
        else:
            formatted = self._error_format(status, body, self.shown_id.decode())
            event = b"event: error\ndata: %b\n\n" % orjson.dumps(formatted)
        await self.write(event, last=True)

    def error_reply(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> Reply:
        """The reply for an error, of which `body` is OpenAI's form."""
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        if self._error_format is not None:
            body = self._error_format(status, body, self.shown_id.decode())
        return json_reply(body, encoded, status)


Endpoint = Callable[[Exchange], Awaitable[Reply | None]]
"""Answers; None after a stream. Raises HttpError and `shared.errors` before the stream has started."""


def json_reply(body: Any, headers: Sequence[tuple[bytes, bytes]] = (), status: int = 200) -> Reply:
    """A reply whose body is `body` as JSON; bytes must be JSON already."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return Reply(status, [_JSON_TYPE, *headers], raw)
