"""One request of a connection with its answer: `receive` and `send` of the ASGI application.

The answer's head leaves together with the first piece of its body: a second write costs a system call, and wakes the
client twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Scope

if TYPE_CHECKING:
    from services.gateway.asgi.protocol import HttpProtocol

_MAX_UNREAD_BODY = 64 * 1024
"""With more bytes of a body that the application has not taken yet, reading from the socket pauses."""
_INTERNAL_ERROR: Message = {
    "type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0"), (b"connection", b"close")],
}  # fmt: skip

logger = logging.getLogger(__name__)


class RequestCycle:
    """`keep_alive`: whether the connection stays open after the answer. `more_body`: the request's body has not come
    whole. `complete`: the answer has left. `on_disconnect`: called if the client leaves before that."""

    def __init__(self, connection: HttpProtocol, scope: Scope, keep_alive: bool) -> None:
        self._connection = connection
        self._scope = scope
        self.keep_alive = keep_alive
        self._expects_continue = (b"expect", b"100-continue") in scope["headers"]
        self._body = bytearray()
        self.more_body = True
        self._arrived = asyncio.Event()
        self._disconnected = False
        self.on_disconnect: Callable[[], None] | None = None
        self._start: Message | None = None
        """The message that starts the answer, held back until there is a body to send with it."""
        self._started = False
        self._left: int | None = None
        """Bytes of the answer's declared length that are still to come; None: it is chunked."""
        self.complete = False

    def add_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > _MAX_UNREAD_BODY:
            self._connection.transport.pause_reading()
        self._arrived.set()

    def end_body(self) -> None:
        self.more_body = False
        self._arrived.set()

    def disconnect(self) -> None:
        """Tell the application that the client has left."""
        self._disconnected = True
        self._arrived.set()
        if self.on_disconnect is not None:
            self.on_disconnect()
            self.on_disconnect = None

    async def run(self, app: ASGIApp) -> None:
        """Have the application answer. What it leaves without an end becomes a 500, or a closed connection."""
        try:
            await app(self._scope, self.receive, self.send)
        except BaseException as error:
            logger.error("internal error in the application", exc_info=error)
        if self._disconnected or self.complete:
            return
        if self._started:
            self._connection.transport.close()
        else:
            self._start = _INTERNAL_ERROR
            await self.send({"type": "http.response.body"})

    async def receive(self) -> Message:
        if self._expects_continue:
            self._expects_continue = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._disconnected and not self.complete:
            await self._arrived.wait()
            self._arrived.clear()
        if self._disconnected or self.complete:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._take_body(), "more_body": self.more_body}

    def _take_body(self) -> bytes:
        body, self._body = bytes(self._body), bytearray()
        if len(body) > _MAX_UNREAD_BODY:
            self._connection.transport.resume_reading()
        return body

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if not self._connection.writable.is_set():
            await self._connection.writable.wait()
        if self._disconnected:
            return
        if self.complete or self._start is None:
            raise RuntimeError("a piece of an answer that has not begun, or has ended")
        more = message.get("more_body", False)
        head = b"" if self._started else self._head(self._start["status"], self._start["headers"])
        piece = head + self._framed(message.get("body", b""), more)
        self._started = True
        if piece:
            self._connection.transport.write(piece)
        if not more:
            self.complete = True
            self.on_disconnect = None  # It refers to this object, and such circles are collected late.
            self._arrived.set()
            self._take_body()
            self._connection.answered(self)

    def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        if self._expects_continue and self.more_body:
            self.keep_alive = False  # Nobody knows whether the body follows: the next bytes may be a request.
        self._left = None
        lines = [status_line(status)]
        for name, value in (*self._connection.server_state.default_headers, *headers):
            if name == b"connection":
                self.keep_alive = self.keep_alive and value != b"close"
            elif name != b"transfer-encoding":
                lines.append(b"%b: %b\r\n" % (name, value))
                if name == b"content-length":
                    self._left = int(value)
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if self._left is None and self._scope["method"] != "HEAD":
            lines.append(b"transfer-encoding: chunked\r\n")
        head = b"".join(lines)
        if not head.count(b"\n") == head.count(b"\r") == len(lines):
            raise RuntimeError("a line break in a header would inject another header")
        return head + b"\r\n"

    def _framed(self, body: bytes, more: bool) -> bytes:
        """A piece of the answer's body as it is sent. Raises RuntimeError if it does not fit the declared length."""
        if self._scope["method"] == "HEAD":
            return b""
        if self._left is None:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk if more else chunk + b"0\r\n\r\n"
        self._left -= len(body)
        if self._left < 0 or (self._left and not more):
            raise RuntimeError("the answer's body does not have the declared length")
        return body


@cache
def status_line(status: int) -> bytes:
    """The first line of an answer. Model servers also send numbers that are no standard's."""
    known: Any = HTTPStatus.__members__.values()
    phrase = next((each.phrase for each in known if each == status), "")
    return b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())
