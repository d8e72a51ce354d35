"""Limits what a client may hold: the size of an HTTP request head (request line and headers), which httptools buffers
without any limit, and the time in which it reads nothing of its answer.

A request that is answered before its body was read, such as one without a valid key, has the rest read and discarded:
most clients read the answer once they have sent everything, and closing with unread data would reset the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import math
import sys
import termios
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from services.gateway.asgi.propagation import REQUEST_ID
from services.gateway.asgi.response import SingleWriteCycle
from shared.http import error_body
from shared.identity import random_id

MAX_HEAD_BYTES = 64 * 1024
_LINGER_SECONDS = 0.5
_LINGER_BYTES = 8 * MAX_HEAD_BYTES
_DRAIN_SECONDS = 5.0
_DRAIN_BYTES = 64 * 1024**2
"""For how long, and how much of, a request's body is read and discarded after its answer, such as a 401."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, but a head over the limit gets a 431 and malformed HTTP a 400, both in OpenAI's format.

    A client that reads nothing of an answer that waits for it for `write_seconds` is disconnected, which cancels its
    request. A usual request, whose head comes in one small piece and whose answer is read, costs nothing more.
    """

    _in_head = False
    _buffered = 0
    """Bytes of the pieces received so far that ended within the current head."""
    _large_piece = False
    _too_large = False
    _write_timer: asyncio.TimerHandle | None = None
    _drain_timer: asyncio.TimerHandle | None = None
    """Runs while the rest of an answered request's body is read."""
    _drained = 0
    _idle_since = math.inf
    """When the last answer ended, on the loop's clock; infinity while a request arrives or is answered."""
    _idle_timer: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, write_seconds: float = 30.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._write_seconds = write_seconds

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watch()
        self._stop_drain()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def on_response_complete(self) -> None:
        """As uvicorn's, which would start a timer of its own after each answer."""
        unread = self.cycle.more_body and not self.pipeline  # With a pipeline the cycle is that of a later request.
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self._begin_idle()
        if unread and not self.transport.is_closing():
            self._drained = 0
            self._drain_timer = self.loop.call_later(_DRAIN_SECONDS, self.transport.abort)
        self._close_in_time()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._drain_timer is not None:
            self._stop_drain()
            if getattr(self.cycle, "closes_later", False):
                self.transport.close()
            else:
                self._begin_idle()

    def _begin_idle(self) -> None:
        """Close the connection unless data arrive in time. One timer per connection outlives its requests: starting and
        cancelling one after each answer took a fiftieth of a request's processor time."""
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def _close_if_idle(self) -> None:
        self._idle_timer = None
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0.0:
            self.timeout_keep_alive_handler()
        elif left < math.inf:
            self._idle_timer = self.loop.call_later(left, self._close_if_idle)

    def _unset_keepalive_if_required(self) -> None:
        """uvicorn calls it when data arrive."""
        self._idle_since = math.inf

    def _stop_drain(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close_in_time()

    def _close_in_time(self) -> None:
        """Closing waits until the client has read the rest, which may be too little to have paused the answer."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._watch_unread()

    def _watch_unread(self) -> None:
        self._stop_watch()
        self._write_timer = self.loop.call_later(self._write_seconds, self._cut_unless_read, self._unread_bytes())

    def _stop_watch(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _cut_unless_read(self, unread: int) -> None:
        if self._unread_bytes() < unread:
            self._watch_unread()
        else:
            self.transport.abort()

    def _unread_bytes(self) -> int:
        """What waits for the client, in the kernel too: that may be megabytes, of which a slow client reads a long time
        before the kernel takes more."""
        in_kernel = bytearray(4)
        with contextlib.suppress(OSError):  # Not every system says.
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
        return self.transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)

    def data_received(self, data: bytes) -> None:
        if self._too_large:
            self._buffered += len(data)
            if self._buffered > _LINGER_BYTES:
                self.transport.abort()
            return
        if self._drain_timer is not None:
            self._drained += len(data)
            if self._drained > _DRAIN_BYTES:
                self.transport.abort()
                return
        self._large_piece = len(data) > MAX_HEAD_BYTES
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._buffered += len(data)
            if self._buffered > MAX_HEAD_BYTES:
                self._too_large = True
                self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._idle_since = math.inf  # What came with the end of the body that was discarded may be a request.
        self._in_head = True
        self._buffered = 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._large_piece or self._buffered:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._too_large = True
                raise httptools.HttpParserError("the head is too large")  # Makes uvicorn call `send_400_response`.
        super().on_headers_complete()
        if type(self.cycle) is RequestResponseCycle:  # Not started yet; uvicorn has no option for its class.
            self.cycle.__class__ = SingleWriteCycle

    def send_400_response(self, msg: str) -> None:
        """Refuse the request and close the connection. `msg` is uvicorn's, for malformed HTTP."""
        if self._too_large:
            message = f"the request's headers are over the limit of {MAX_HEAD_BYTES} bytes"
            status, body = 431, error_body(message, "headers_too_large", 431)
        else:
            status, body = 400, error_body(f"{msg} Is it HTTP/1.1?", "malformed_http", 400)
        content = json.dumps(body).encode()
        # Of a head that was not read whole no id of the client is known.
        ids = b"%b: %b\r\n" % (REQUEST_ID, random_id().encode())
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(content)
        self.transport.write(STATUS_LINE[status] + ids + head + b"\r\n" + content)
        if self._too_large and self.transport.can_write_eof():
            # Closing with unread data would reset the connection before the client reads the reason.
            self.transport.write_eof()
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()
            self._close_in_time()
