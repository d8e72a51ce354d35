"""HTTP/1.1 to one model server, and no more of it than a gateway needs: bytes there, bytes back, pieces of a stream.

A general client does much for each request that is of no use here: redirects, cookies, encodings, events for tracing.
It was the largest part of what a request cost: `python -m tests.benchmarks.wire` measured 38 µs of the processor here,
120 for aiohttp, 450 for httpx. The framing is llhttp's, the parser of Node, through httptools.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from services.gateway.upstreams.connection import Connection
from services.gateway.upstreams.connection import ConnectionLost as ConnectionLost
from shared.errors import ConfigurationError

_IDLE_SECONDS = 4.0
"""vLLM closes a connection that was idle for 5 s: one that is closed while we send on it costs a retry."""


class ConnectFailed(ConnectionError):
    """Nobody listens there, or not within the time for it."""


class StreamIdle(TimeoutError):
    """A stream gave nothing for too long."""


class UpstreamResponse(NamedTuple):
    """`headers` with names in lower case."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class UpstreamClient:
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
        self._idle: list[Connection] = []
        self._heads: dict[tuple[str, str], bytes] = {}
        name = f"[{self._host}]" if ":" in self._host else self._host
        fields = {"host": f"{name}:{port}" if port else name, **headers}
        if place.username is not None:
            user = f"{unquote(place.username)}:{unquote(place.password or '')}"
            fields.setdefault("authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
        self._fields = "".join(f"{field}: {value}\r\n" for field, value in fields.items())

    async def ask(self, method: str, path: str, body: bytes, seconds: float) -> UpstreamResponse:
        """A whole answer. Raises ConnectFailed, ConnectionLost, TimeoutError. Cancelled, it closes the connection."""
        until = asyncio.get_running_loop().time() + seconds
        one = await self._taken(until)
        try:
            one.send(self._head(method, path, body), eager=False)
            raw = await one.whole(until)
        except BaseException:
            one.close()
            raise
        finally:
            self._slots.release()
        answer = UpstreamResponse(one.status, one.headers, raw)
        self._release(one)
        return answer

    async def stream(self, path: str, body: bytes, piece_seconds: float, seconds: float) -> ResponseStream:
        """A streamed answer to a POST, once its headers are there. Close it. Raises as `ask`, and StreamIdle."""
        now = asyncio.get_running_loop().time()
        until = now + seconds
        first = min(now + piece_seconds, until)
        try:
            one = await self._taken(first)
            try:
                one.send(self._head("POST", path, body), eager=True)
                await one.head(first)
            except BaseException:
                one.close()
                self._slots.release()
                raise
        except TimeoutError as error:
            raise _late(first, until) from error
        return ResponseStream(self, one, piece_seconds, until)

    async def _taken(self, until: float) -> Connection:
        """A connection, of those that there may be. Raises ConnectFailed; TimeoutError at `until`."""
        if self._slots.locked():
            async with asyncio.timeout_at(until):
                await self._slots.acquire()
        else:
            await self._slots.acquire()
        try:
            return await self._connection(until)
        except BaseException:
            self._slots.release()
            raise

    def end(self, one: Connection) -> None:
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

    async def _connection(self, until: float) -> Connection:
        now = time.monotonic()
        while self._idle:
            one = self._idle.pop()
            if not one.closed and now - one.idle_since < _IDLE_SECONDS:
                return one
            one.close()
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout_at(min(loop.time() + self._connect_seconds, until)):
                _, one = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        except OSError as error:  # TimeoutError and ssl.SSLError are among them.
            raise ConnectFailed(f"{self._host}:{self._port}: {error!r}") from error
        return one

    def _release(self, one: Connection) -> None:
        if one.complete and one.reusable and not one.closed:
            one.idle_since = time.monotonic()
            self._idle.append(one)
        else:
            one.close()


class ResponseStream:
    """A streamed answer: `piece` after `piece`."""

    def __init__(self, origin: UpstreamClient, one: Connection, piece_seconds: float, until: float) -> None:
        self._origin = origin
        self._one = one
        self._piece_seconds = piece_seconds
        self._until = until
        self._clock = asyncio.get_running_loop().time
        self.status = one.status
        self.headers: Mapping[bytes, bytes] = one.headers

    async def piece(self) -> bytes:
        """What came since the last one, cut anywhere; empty at the end. Raises ConnectionLost, StreamIdle."""
        moment = min(self._clock() + self._piece_seconds, self._until)
        try:
            return await self._one.piece(moment)
        except TimeoutError as error:
            raise _late(moment, self._until) from error

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


def _late(moment: float, until: float) -> TimeoutError:
    """What a stream has run into that gave nothing up to this moment, and may take until then."""
    return StreamIdle() if moment < until else TimeoutError()
