"""An answer's head leaves together with the first of its body. uvicorn writes the two one after the other: one more
system call here, and a client that wakes up twice.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from services.gateway.asgi.exchange import Headers

_UNUSUAL = frozenset({b"connection", b"transfer-encoding"})
_BODILESS = (204, 304)


class SingleWriteCycle(RequestResponseCycle):
    """uvicorn's own cycle for anything but the usual: a POST over a connection that stays, to a client that reads."""

    _start: Any = None
    """The message that begins the answer, held until there is something to send with it."""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and not self.response_started:
            self._start = message
            return
        start, self._start = self._start, None
        if start is None:
            await super().send(message)
        elif not self._sent(start["status"], start["headers"], message):
            await super().send(start)
            await super().send(message)

    def _sent(self, status: int, headers: Headers, message: Any) -> bool:
        """Send head and first piece, if there is nothing unusual about them."""
        body, more = message.get("body", b""), message.get("more_body", False)
        if self.scope["method"] != "POST" or not self.keep_alive or self.disconnected or self.flow.write_paused:
            return False
        length, lines = None, [STATUS_LINE[status]]
        for name, value in (*self.default_headers, *headers):
            if name == b"content-length":
                length = int(value)
            elif name in _UNUSUAL:
                return False
            lines += (name, b": ", value, b"\r\n")
        if length is None:
            if status in _BODILESS:
                return False
            lines.append(b"transfer-encoding: chunked\r\n\r\n")
        elif more or length != len(body):
            return False
        else:
            lines.append(b"\r\n")
        head = b"".join(lines)
        ends = 1 + len(self.default_headers) + len(headers) + (2 if length is None else 1)
        if head.count(b"\n") != ends or head.count(b"\r") != ends:
            return False  # A line break within a header would begin another: uvicorn refuses it.
        self.response_started = True
        self.waiting_for_100_continue = False
        if length is None:
            self.chunked_encoding = True
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self.transport.write(b"%b%b%b" % (head, body, b"" if more else b"0\r\n\r\n"))
        else:
            self.transport.write(head + body)
        if not more:
            self.response_complete = True
            self.message_event.set()
            self.on_response()
        return True
