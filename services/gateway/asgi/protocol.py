"""Limits the size of an HTTP request head (request line and headers): httptools buffers a head without any limit."""

from __future__ import annotations

import json

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from services.gateway.asgi.response import SingleWriteCycle
from shared.http import error_body

MAX_HEAD_BYTES = 64 * 1024
_LINGER_SECONDS = 0.5
_LINGER_BYTES = 8 * MAX_HEAD_BYTES


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, but a head over the limit gets a 431 and malformed HTTP a 400, both in OpenAI's format.

    A usual request, whose head comes in one small piece, costs nothing more.
    """

    _in_head = False
    _buffered = 0
    """Bytes of the pieces received so far that ended within the current head."""
    _large_piece = False
    _too_large = False

    def data_received(self, data: bytes) -> None:
        if self._too_large:
            self._buffered += len(data)
            if self._buffered > _LINGER_BYTES:
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
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(content)
        self.transport.write(STATUS_LINE[status] + head + content)
        if self._too_large and self.transport.can_write_eof():
            # Closing with unread data would reset the connection before the client reads the reason.
            self.transport.write_eof()
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()
