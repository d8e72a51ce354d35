"""One HTTP/1.1 connection to a model server: one request at a time, its response read whole or in pieces."""

from __future__ import annotations

import asyncio
import math
import select
from collections.abc import Callable, Sequence
from typing import cast

import httptools

from services.gateway.turn_batch import TurnBatch

_MAX_UNREAD_BYTES = 256 * 1024
"""With more unread bytes of a stream, reading from the socket pauses, so that the server waits."""
_MAX_COPIED_BYTES = 64 * 1024
"""A longer body is not copied to be sent with its head in one system call: two buffers cost less then."""


class ConnectionLost(ConnectionError):
    """The connection broke before the response was complete, or the server does not speak HTTP."""


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time. httptools calls the `on_…` methods.

    `batch`: the requests to this server that come together, each kept by its connection until the turn's end.
    """

    def __init__(self, batch: TurnBatch[Connection]) -> None:
        self._batch = batch
        self._unsent = b""
        self._is_tls = False
        self.closed = False
        self.complete = True
        self.reusable = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.idle_since = 0.0
        self._timed_out = False
        self._has_headers = False
        self._streaming = False
        self._paused = False
        self._unread_bytes = 0
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = math.inf
        self._stream_deadline = math.inf
        self._on_lost: Callable[[], None] | None = None
        self._next_check = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._poll = select.poll()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._is_tls = transport.get_extra_info("ssl_object") is not None

    @property
    def usable(self) -> bool:
        """False if an idle connection is closed, or something waits in its socket: its end, or what nobody asked for.

        The event loop may not have read that yet. Sent now, the next request would get another one's response. The
        look costs half a microsecond.
        """
        return not self.closed and not self._poll.poll(0)

    def connection_lost(self, error: Exception | None) -> None:
        by_server, self.closed = not self.closed, True
        if self._timer is not None:
            self._timer.cancel()
        has_length = self.headers.keys() & {b"content-length", b"transfer-encoding"}
        if by_server and error is None and self._has_headers and not has_length:
            self.complete = True  # A body without a length ends when the server closes the connection.
        if self._on_lost is not None:
            self._on_lost()
        self._wake()

    def data_received(self, data: bytes) -> None:
        if self.complete or self._unsent:  # Unsolicited data must not become the response to the next request.
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
            return
        if self._streaming and self._parts and not self.complete:
            self._unread_bytes += len(data)
            if self._unread_bytes > _MAX_UNREAD_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
        if self._streaming or self.complete:
            self._wake()

    def on_message_begin(self) -> None:
        if self.complete:  # A second response that came together with the first.
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:  # 1xx such as 100 Continue: the real response follows.
            self.headers = {}
            return
        self._has_headers = True

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._has_headers and not self.complete:
            self.complete = True
            self.reusable = self._parser.should_keep_alive()

    def send(self, head: bytes, body: bytes, *, streaming: bool) -> None:
        """Send a request, at the end of the turn where others come with it: a server on this machine then wakes once
        for all. `streaming`: the response will be read piece by piece.

        With TLS it is sent at once: what has come by the end of the turn may be a session ticket, and no sign that the
        connection is not to be used.
        """
        self.status, self.headers, self._parts, self._unread_bytes = 0, {}, [], 0
        self.complete = self.reusable = self._has_headers = False
        self._streaming = streaming
        if len(body) > _MAX_COPIED_BYTES:
            self._transport.writelines((head, body))
        elif self._is_tls or self._batch.comes_alone():
            self._transport.write(head + body)
        else:
            self._unsent = head + body
            self._batch.add(self, len(self._unsent))

    def send_unsent(self) -> None:
        """Send the request that waited for the end of the turn, unless the connection was closed or lost meanwhile."""
        unsent, self._unsent = self._unsent, b""
        if self.usable:
            self._transport.write(unsent)
        else:
            self.close()

    def begin_stream(self, deadline: float, on_lost: Callable[[], None]) -> None:
        """Close the connection at `deadline`, whether somebody waits for the stream or not. `on_lost` is called when
        the connection is lost, by that or otherwise. To be called once the headers have arrived."""
        self._stream_deadline = self._deadline = deadline
        self._on_lost = on_lost

    def end_stream(self) -> None:
        """Undo `begin_stream`. What was not read is dropped: the next request must neither wait for it nor get it."""
        self._stream_deadline = self._deadline = math.inf
        self._on_lost = None
        if not self.closed:  # Of a closed connection the stream's reader still gets what had arrived.
            self._drop_unread()

    async def read_body(self, deadline: float) -> bytes:
        """Return the complete body. Raises ConnectionLost; TimeoutError at `deadline`, on the loop's clock."""
        while not self.complete:
            await self._wait_for_data(deadline)
        parts, self._parts = self._parts, []  # An idle connection must not keep a large answer.
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def wait_for_headers(self, deadline: float) -> None:
        """Return when the headers have arrived. Raises as `read_body`."""
        while not self._has_headers:
            await self._wait_for_data(deadline)

    async def read_piece(self, deadline: float) -> bytes:
        """Return what has arrived since the last piece; empty at the end. Raises as `read_body`."""
        while not self._parts and not self.complete:
            await self._wait_for_data(deadline)
        piece = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._drop_unread()
        return piece

    def _drop_unread(self) -> None:
        self._parts.clear()
        self._unread_bytes = 0
        if self._paused and not self.closed:
            self._paused = False
            self._transport.resume_reading()

    async def _wait_for_data(self, deadline: float) -> None:
        """Wait until something arrives. Raises ConnectionLost, TimeoutError.

        One timer per connection checks the deadline and outlives the wait. A timer for each wait (`asyncio.timeout`)
        took a fifth of a request's processor time, and five microseconds for each piece of a stream.
        """
        if self._timed_out:
            raise TimeoutError
        if self.closed:
            raise ConnectionLost("connection closed before the response was complete")
        self._deadline = deadline
        if deadline < self._next_check:
            self._check_at(deadline)
        self._waiter = self._loop.create_future()
        await self._waiter

    def _check_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_check = moment
        self._timer = self._loop.call_at(moment, self._check)

    def _check(self) -> None:
        self._next_check, self._timer = math.inf, None
        if self._loop.time() >= self._deadline:
            self._timed_out = True
            self.close()
        elif self._deadline < math.inf:
            self._check_at(self._deadline)

    def _wake(self) -> None:
        self._deadline = self._stream_deadline
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._transport.abort()
            self._wake()


def send_together(connections: Sequence[Connection]) -> None:
    """Send the requests of one turn."""
    for connection in connections:
        connection.send_unsent()
