"""Sends an answer's head together with the first piece of its body.

uvicorn writes them one after the other, which costs a second system call and wakes the client twice.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from services.gateway.asgi.exchange import Headers

_UNUSUAL_HEADERS = frozenset({b"connection", b"transfer-encoding"})
_STATUSES_WITHOUT_BODY = (204, 304)


class SingleWriteCycle(RequestResponseCycle):
    """uvicorn's cycle, with a single write in the usual case: a POST on a kept-alive connection that is writable."""

    _start: Any = None
    """The message that starts the answer, held back until there is a body to send with it."""
    closes_later = False
    """Whether the connection closes once the rest of the request's body has been read."""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and not self.response_started:
            self._start = message
            return
        start, self._start = self._start, None
        if start is None:
            await self._send(message)
        elif not self._send_at_once(start["status"], start["headers"], message):
            if self.waiting_for_100_continue and self.more_body:
                self.keep_alive = False  # Nobody knows whether the body follows: the next bytes may be a request.
            await self._send(start)
            await self._send(message)

    async def _send(self, message: Any) -> None:
        """Send as uvicorn does, which closes the connection after the answer: with unread data of the request that
        resets it, and the client may never see the answer. So the protocol reads the rest first, and then closes."""
        if self.more_body and not self.keep_alive and self.response_started and not message.get("more_body", False):
            self.keep_alive, self.closes_later = True, True
        await super().send(message)

    def _send_at_once(self, status: int, headers: Headers, message: Any) -> bool:
        """Send the head with the first piece. Returns False, having sent nothing, in an unusual case."""
        body, more = message.get("body", b""), message.get("more_body", False)
        if self.scope["method"] != "POST" or not self.keep_alive or self.disconnected or self.flow.write_paused:
            return False
        if self.waiting_for_100_continue and self.more_body:
            return False
        length, lines = None, [STATUS_LINE[status]]
        for name, value in (*self.default_headers, *headers):
            if name == b"content-length":
                length = int(value)
            elif name in _UNUSUAL_HEADERS:
                return False
            lines += (name, b": ", value, b"\r\n")
        if length is None:
            if status in _STATUSES_WITHOUT_BODY:
                return False
            lines.append(b"transfer-encoding: chunked\r\n\r\n")
        elif more or length != len(body):
            return False
        else:
            lines.append(b"\r\n")
        head = b"".join(lines)
        line_ends = 1 + len(self.default_headers) + len(headers) + (2 if length is None else 1)
        if head.count(b"\n") != line_ends or head.count(b"\r") != line_ends:
            return False  # A line break in a header would inject another header: uvicorn refuses it.
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
