"""HTTP/1.1 connections of clients: requests one after the other, each answered by the ASGI application.

httptools parses them. uvicorn makes a protocol for each connection and asks it to `shutdown`. What a client may hold is
limited: the size of a request's head, which httptools buffers without any limit, and the time without any progress.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
import orjson
from uvicorn.config import Config
from uvicorn.server import ServerState

from services.gateway.asgi.exchange import ON_DISCONNECT
from services.gateway.asgi.propagation import REQUEST_ID
from services.gateway.asgi.response import RequestCycle, status_line
from shared.http import error_body
from shared.identity import random_id

MAX_HEAD_BYTES = 64 * 1024
_LINGER_SECONDS = 0.5
_MAX_DRAINED_BYTES = 64 * 1024**2
"""Of a request's body that is read and discarded after its answer, such as a 401. Most clients read the answer once
they have sent everything, and closing with unread data would reset the connection."""


class HttpProtocol(asyncio.Protocol):
    """A client's connection. httptools calls the `on_…` methods.

    A head over the limit gets a 431, malformed HTTP a 400, both in OpenAI's format. The connection is closed if for
    `timeout_keep_alive` seconds no new request begins, or the client reads nothing of what waits for it.
    """

    transport: asyncio.Transport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app = config.loaded_app
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._patience = config.timeout_keep_alive
        self.server_state = server_state
        self._parser: Any = httptools.HttpRequestParser(self)
        # A client that wants the connection closed may send more all the same, which is no malformed request.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.writable = asyncio.Event()
        self.writable.set()
        self._cycle: RequestCycle | None = None
        self._is_ignored = False
        """Whether what arrives is ignored: a request that did not wait for the answer before it."""
        self._in_head = False
        self._head_bytes = 0
        self._drained = 0
        self._idle_since = math.inf
        """When the last answer ended, on the loop's clock; infinity while a request arrives or is answered."""
        self._idle_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # as of every connection
        self._server, self._client = _address(transport, "sockname"), _address(transport, "peername")
        self.server_state.connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own protocols

    def connection_lost(self, error: Exception | None) -> None:
        self.server_state.connections.discard(self)
        if self._cycle is not None:
            self._cycle.disconnect()
        self.writable.set()
        for timer in (self._idle_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._parser = None  # It refers to this object, and such circles are collected late.

    def shutdown(self) -> None:
        """Close the connection, or have the answer in progress close it. uvicorn calls it at its stop."""
        if self._cycle is None or self._cycle.complete:
            self.transport.close()
        else:
            self._cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # A client that offers another protocol takes this one, too.
        except httptools.HttpParserError as error:
            if self._head_bytes <= MAX_HEAD_BYTES:
                self._refuse(400, f"{error}. Is it HTTP/1.1?", "malformed_http")
                return
        if self._in_head:
            self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(
                431, f"the request's headers are over the limit of {MAX_HEAD_BYTES} bytes", "headers_too_large"
            )

    def on_message_begin(self) -> None:
        self._idle_since = math.inf
        self._in_head = True
        self._head_bytes = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise httptools.HttpParserError("the head is too large")  # `data_received` refuses it.
        self._is_ignored = self._cycle is not None and not self._cycle.complete
        if self._cycle is not None and self._is_ignored:
            self._cycle.keep_alive = False  # Pipelining: the client asks again on another connection.
            return
        url, version = httptools.parse_url(self._url), self._parser.get_http_version()
        path = url.path.decode("ascii")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self._server,
            "client": self._client,
            "scheme": "http",
            "root_path": "",
            "method": self._parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "headers": self._headers,
            "state": self._app_state.copy(),
            "extensions": {ON_DISCONNECT: self._on_disconnect},
        }
        self._cycle = RequestCycle(self, scope, version != "1.0" and self._parser.should_keep_alive())
        task = self._loop.create_task(self._cycle.run(self._app))
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    def _on_disconnect(self, callback: Callable[[], None]) -> None:
        if self._cycle is not None:
            self._cycle.on_disconnect = callback

    def on_body(self, body: bytes) -> None:
        if self._cycle is None or self._is_ignored:
            return
        if not self._cycle.complete:
            self._cycle.add_body(body)
        else:
            self._drained += len(body)
            if self._drained > _MAX_DRAINED_BYTES:
                self.transport.abort()

    def on_message_complete(self) -> None:
        if self._cycle is not None and not self._is_ignored:
            self._cycle.end_body()
            if self._cycle.complete and not self._cycle.keep_alive:
                self._close()

    def answered(self, cycle: RequestCycle) -> None:
        """Called when an answer has left. The rest of the request's body is read first."""
        self.server_state.total_requests += 1
        self._drained = 0
        if not self.transport.is_closing():
            self._begin_idle()
            if not cycle.keep_alive and not cycle.more_body:
                self._close()

    def _begin_idle(self) -> None:
        """One timer per connection outlives its requests: starting and cancelling one after each answer took a fiftieth
        of a request's processor time."""
        self._idle_since = self._loop.time()
        if self._idle_timer is None:
            self._idle_timer = self._loop.call_later(self._patience, self._close_if_idle)

    def _close_if_idle(self) -> None:
        self._idle_timer = None
        left = self._idle_since + self._patience - self._loop.time()
        if left <= 0.0:
            self._close()
        elif left < math.inf:
            self._idle_timer = self._loop.call_later(left, self._close_if_idle)

    def pause_writing(self) -> None:
        self.writable.clear()
        self._watch_unread()

    def resume_writing(self) -> None:
        self.writable.set()

    def _close(self) -> None:
        """Close the connection once the client has read the rest."""
        self.transport.close()
        self._watch_unread()

    def _watch_unread(self) -> None:
        """Abort the connection unless the client has read some of what waits for it when the time is over."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        if unread := self.transport.get_write_buffer_size():
            self._write_timer = self._loop.call_later(self._patience, self._abort_unless_read, unread)

    def _abort_unless_read(self, unread: int) -> None:
        if 0 < unread <= self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self._watch_unread()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Refuse what was read only in part, and close the connection."""
        content = orjson.dumps(error_body(message, code, status))
        # Of a head that was not read whole no id of the client is known.
        head = b"%b%b: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status_line(status), REQUEST_ID, random_id().encode(), len(content)) + content)
        # Closing with unread data would reset the connection before the client reads the reason.
        self.transport.pause_reading()
        self._loop.call_later(_LINGER_SECONDS, self._close)


def _address(transport: asyncio.BaseTransport, name: str) -> tuple[str, int] | None:
    found = transport.get_extra_info(name)
    return (str(found[0]), int(found[1])) if isinstance(found, list | tuple) else None
