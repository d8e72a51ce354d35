"""HTTP/1.1 to one model server, and no more of it than a gateway needs: bytes there, bytes back, pieces of a stream.

A general client does much for each request that is of no use here: redirects, cookies, encodings, events for tracing.
It was the largest part of what a request cost: `python -m tests.benchmarks.wire` measured 26 µs of the processor here,
102 for aiohttp, 650 for httpx. The framing is llhttp's, the parser of Node, through httptools.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import Awaitable, Mapping
from typing import NamedTuple, TypeVar, cast
from urllib.parse import SplitResult, unquote, urlsplit

import httptools

from shared.errors import ConfigurationError

_IDLE_SECONDS = 4.0
"""vLLM closes a connection that was idle for 5 s: one that is closed while we send on it costs a retry."""
_UNREAD_BYTES = 256 * 1024
"""Of a stream that nobody reads; then the server is made to wait."""


T = TypeVar("T")


class ConnectFailed(ConnectionError):
    """Nobody listens there, or not within the time for it."""


class ConnectionLost(ConnectionError):
    """It broke before the answer was whole, or what came is no HTTP."""


class Silent(TimeoutError):
    """A stream gave nothing for too long."""


class Answer(NamedTuple):
    """`headers` with names in lower case."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection, which carries one request at a time. httptools calls the `on_…` methods."""

    def __init__(self) -> None:
        self.closed = False
        self.complete = True
        self.reusable = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.idle_since = 0.0
        self._headed = False
        self._eager = False
        self._paused = False
        self._unread = 0
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
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

    async def whole(self) -> bytes:
        """The body, once it is there. Raises ConnectionLost."""
        while not self.complete:
            await self._something()
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    async def head(self) -> None:
        """Returns when the headers are there. Raises ConnectionLost."""
        while not self._headed:
            await self._something()

    @property
    def has_piece(self) -> bool:
        return bool(self._parts) or self.complete

    async def piece(self) -> bytes:
        """What came since the last piece; empty at the end. Raises ConnectionLost."""
        while not self.has_piece:
            await self._something()
        piece = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._unread = 0
        if self._paused and not self.closed:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def _something(self) -> None:
        if self.closed:
            raise ConnectionLost("the connection broke before the answer was whole")
        self._waiting = asyncio.get_running_loop().create_future()
        await self._waiting

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._transport.abort()
            self._wake()


class Origin:
    """A server at `url`, whose path goes before every request's. `slots`: how many connections all origins may have.

    Raises ConfigurationError for an address that is none.
    """

    def __init__(self, url: str, headers: Mapping[str, str], connect_seconds: float, slots: asyncio.Semaphore) -> None:
        place, port = _place(url)
        self._tls = ssl.create_default_context() if place.scheme == "https" else None
        self._host = place.hostname or ""
        self._port = port or (443 if self._tls else 80)
        self._base = place.path.rstrip("/")
        self._connect_seconds = connect_seconds
        self._slots = slots
        self._idle: list[_Connection] = []
        self._heads: dict[tuple[str, str], bytes] = {}
        name = f"[{self._host}]" if ":" in self._host else self._host
        fields = {"host": f"{name}:{port}" if port else name, **headers}
        if place.username is not None:
            user = f"{unquote(place.username)}:{unquote(place.password or '')}"
            fields.setdefault("authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
        self._fields = "".join(f"{field}: {value}\r\n" for field, value in fields.items())

    async def ask(self, method: str, path: str, body: bytes, seconds: float) -> Answer:
        """A whole answer. Raises ConnectFailed, ConnectionLost, TimeoutError. Cancelled, it closes the connection."""
        async with asyncio.timeout(seconds), self._slots:
            one = await self._connection()
            try:
                one.send(self._head(method, path, body), eager=False)
                raw = await one.whole()
            except BaseException:
                one.close()
                raise
            answer = Answer(one.status, one.headers, raw)
            self._release(one)
            return answer

    async def stream(self, path: str, body: bytes, piece_seconds: float, seconds: float) -> Stream:
        """A streamed answer to a POST, once its headers are there. Close it. Raises as `ask`, and Silent."""
        until = asyncio.get_running_loop().time() + seconds
        one = await _within(self._begun("POST", path, body), piece_seconds, until)
        return Stream(self, one, piece_seconds, until)

    async def _begun(self, method: str, path: str, body: bytes) -> _Connection:
        await self._slots.acquire()
        one = None
        try:
            one = await self._connection()
            one.send(self._head(method, path, body), eager=True)
            await one.head()
        except BaseException:
            if one is not None:
                one.close()
            self._slots.release()
            raise
        return one

    def end(self, one: _Connection) -> None:
        """Of a stream: its connection is used again if it was read to its end."""
        self._slots.release()
        self._release(one)

    def close(self) -> None:
        """Close what is idle. What is not belongs to whoever waits for it."""
        for one in self._idle:
            one.close()
        self._idle.clear()

    def _head(self, method: str, path: str, body: bytes) -> bytes:
        head = self._heads.get((method, path))
        if head is None:  # Kept: `path` is one of the few that we have routes for.
            text = f"{method} {self._base}{path} HTTP/1.1\r\n{self._fields}content-length: "
            head = self._heads[method, path] = text.encode("latin-1")
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)

    async def _connection(self) -> _Connection:
        now = asyncio.get_running_loop().time()
        while self._idle:
            one = self._idle.pop()
            if not one.closed and now - one.idle_since < _IDLE_SECONDS:
                return one
            one.close()
        try:
            async with asyncio.timeout(self._connect_seconds):
                loop = asyncio.get_running_loop()
                _, one = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        except OSError as error:  # TimeoutError and ssl.SSLError are among them.
            raise ConnectFailed(f"{self._host}:{self._port}: {error!r}") from error
        return one

    def _release(self, one: _Connection) -> None:
        if one.complete and one.reusable and not one.closed:
            one.idle_since = asyncio.get_running_loop().time()
            self._idle.append(one)
        else:
            one.close()


class Stream:
    """A streamed answer: `piece` after `piece`."""

    def __init__(self, origin: Origin, one: _Connection, piece_seconds: float, until: float) -> None:
        self._origin = origin
        self._one = one
        self._piece_seconds = piece_seconds
        self._until = until
        self.status = one.status
        self.headers: Mapping[bytes, bytes] = one.headers

    async def piece(self) -> bytes:
        """What came since the last one, cut anywhere; empty at the end. Raises ConnectionLost, Silent, TimeoutError."""
        if self._one.has_piece:
            return await self._one.piece()
        return await _within(self._one.piece(), self._piece_seconds, self._until)

    async def rest(self) -> bytes:
        """All that is to come."""
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        self._origin.end(self._one)


def _place(url: str) -> tuple[SplitResult, int | None]:
    """An address and its port. Raises ConfigurationError."""
    with contextlib.suppress(ValueError):  # A port that is no number.
        place = urlsplit(url)
        if place.scheme in ("http", "https") and place.hostname:
            return place, place.port
    raise ConfigurationError(f"{url!r} is no address of a model server", "Write it as http://host:port")


async def _within(work: Awaitable[T], piece_seconds: float, until: float) -> T:
    """Raises Silent after `piece_seconds`, another TimeoutError at `until`."""
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout_at(min(clock() + piece_seconds, until)):
            return await work
    except TimeoutError as error:
        if clock() >= until:
            raise
        raise Silent from error
