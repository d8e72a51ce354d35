"""One HTTP/1.1 connection to a model server: requests one after the other, each answer whole or in pieces."""

from __future__ import annotations

import asyncio
import math
from typing import cast

import httptools

_UNREAD_BYTES = 256 * 1024
"""Of a stream that nobody reads; then the server is made to wait."""


class ConnectionLost(ConnectionError):
    """It broke before the answer was whole, or what came is no HTTP."""


class Connection(asyncio.Protocol):
    """One connection, which carries one request at a time. httptools calls the `on_…` methods."""

    def __init__(self) -> None:
        self.closed = False
        self.complete = True
        self.reusable = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.idle_since = 0.0
        self._late = False
        self._headed = False
        self._eager = False
        self._paused = False
        self._unread = 0
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None
        self._until = math.inf
        self._looks_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if error is None and self._headed and not self.headers.keys() & {b"content-length", b"transfer-encoding"}:
            self.complete = True  # A body without a length ends with its connection.
        self._wake()

    def data_received(self, data: bytes) -> None:
        if self.complete:  # Nobody asked: whatever it is, it must not become the answer to the next request.
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()

    def on_message_begin(self) -> None:
        if self.complete:  # A second answer, in one piece with the first.
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:  # 100 Continue and its like: the answer is still to come.
            self.headers = {}
            return
        self._headed = True
        if self._eager:
            self._wake()

    def on_body(self, body: bytes) -> None:
        if self.complete:
            return
        self._parts.append(body)
        if self._eager:
            self._unread += len(body)
            if self._unread > _UNREAD_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            self._wake()

    def on_message_complete(self) -> None:
        if self._headed and not self.complete:
            self.complete = True
            self.reusable = self._parser.should_keep_alive()
            self._wake()

    def send(self, request: bytes, *, eager: bool) -> None:
        """Send a request. `eager`: its answer is wanted piece by piece."""
        self.status, self.headers, self._parts, self._unread = 0, {}, [], 0
        self.complete = self.reusable = self._headed = False
        self._eager = eager
        self._transport.write(request)

    async def whole(self, until: float) -> bytes:
        """The body, once it is there. Raises ConnectionLost; TimeoutError at `until`, on the loop's clock."""
        while not self.complete:
            await self._something(until)
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    async def head(self, until: float) -> None:
        """Returns when the headers are there. Raises as `whole`."""
        while not self._headed:
            await self._something(until)

    @property
    def has_piece(self) -> bool:
        return bool(self._parts) or self.complete

    async def piece(self, until: float) -> bytes:
        """What came since the last piece; empty at the end. Raises as `whole`."""
        while not self.has_piece:
            await self._something(until)
        piece = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._unread = 0
        if self._paused and not self.closed:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def _something(self, until: float) -> None:
        """Wait until something came.

        Its time limit is a number, and one timer looks at it that stays from one wait to the next: one for each wait
        (`asyncio.timeout`) was a fifth of what a request cost here, and five microseconds of each piece of a stream.
        """
        if self._late:
            raise TimeoutError
        if self.closed:
            raise ConnectionLost("the connection broke before the answer was whole")
        self._until = until
        if until < self._looks_at:
            self._look_at(until)
        self._waiting = self._loop.create_future()
        await self._waiting

    def _look_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = moment
        self._timer = self._loop.call_at(moment, self._look)

    def _look(self) -> None:
        self._looks_at, self._timer = math.inf, None
        if self._loop.time() >= self._until:
            self._late = True
            self.close()
        elif self._until < math.inf:
            self._look_at(self._until)

    def _wake(self) -> None:
        self._until = math.inf
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._transport.abort()
            self._wake()
