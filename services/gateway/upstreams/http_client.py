"""A minimal HTTP/1.1 client for one model server: whole responses, and streams piece by piece.

A general client spends time on redirects, cookies, encodings and tracing events, none of which are needed here. APIs
of others have one: `outside.py`.
`python -m tests.benchmarks.http_clients` measures the processor time of a request: 38 µs here, 120 in aiohttp, 450 in
httpx. httptools parses the responses (llhttp, Node's parser).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import re
import socket
import ssl
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from services.gateway.turn_batch import TurnBatch
from services.gateway.upstreams.connection import Connection, send_together
from services.gateway.upstreams.connection import ConnectionLost as ConnectionLost
from shared.addresses import without_credentials
from shared.errors import ConfigurationError

_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
"""Errors of a connection that this machine, not the server, refuses: files, ports or memory have run out."""
_MAX_IDLE_SECONDS = 4.0
"""vLLM closes a connection after 5 idle seconds; a request sent on a closing connection costs a retry."""

_END_SECONDS = 1.0
"""How long the end of a response may take after the last piece that its reader wanted."""


class ConnectFailed(ConnectionError):
    """The connection was refused, or not accepted within the connect timeout."""


class NoFreeConnection(ConnectionError):
    """This gateway has no connection left: its own limit or the machine's is reached. Says nothing about the server."""


class StreamIdle(TimeoutError):
    """A stream sent nothing for too long."""


class UpstreamResponse(NamedTuple):
    """A whole response. Header names are in lower case."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class UpstreamClient:
    """The client of the server at `url`, whose path is the prefix of every request's path.

    `connection_limit` limits the connections of all clients together; a request waits for one for `wait_seconds` at
    most. Raises ConfigurationError for an invalid address.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        connect_seconds: float,
        connection_limit: asyncio.Semaphore,
        wait_seconds: float = 30.0,
    ) -> None:
        address, port = _parse_url(url)
        self._tls = ssl.create_default_context() if address.scheme == "https" else None
        self._host = address.hostname or ""
        self._port = port or (443 if self._tls else 80)
        self._base_path = address.path.rstrip("/")
        self._connect_seconds = connect_seconds
        self._connection_limit = connection_limit
        self._wait_seconds = wait_seconds
        self._idle: list[Connection] = []
        self._batch = TurnBatch(send_together)
        self._heads: dict[tuple[str, str], bytes] = {}
        host = f"[{self._host}]" if ":" in self._host else self._host
        fields = {"host": f"{host}:{port}" if port else host, **headers}
        if address.username is not None:
            user = f"{unquote(address.username)}:{unquote(address.password or '')}"
            fields.setdefault("authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
        self._header_lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())

    async def request(
        self, method: str, path: str, body: bytes, seconds: float, lines: bytes = b""
    ) -> UpstreamResponse:
        """Return a whole response. Raises NoFreeConnection, ConnectFailed, ConnectionLost, TimeoutError.

        `seconds` are the server's: they begin when a connection is free. `lines`: the request's own header lines. A
        cancelled request closes its connection.
        """
        await self._take_slot()
        try:
            return await self._exchange(method, path, body, seconds, lines)
        finally:
            self._connection_limit.release()

    async def probe(self, path: str, seconds: float) -> UpstreamResponse:
        """GET over a connection that the limit does not count. Raises as `request`."""
        return await self._exchange("GET", path, b"", seconds)

    async def _exchange(
        self, method: str, path: str, body: bytes, seconds: float, lines: bytes = b""
    ) -> UpstreamResponse:
        deadline = asyncio.get_running_loop().time() + seconds
        connection = await self._connect(deadline)
        try:
            connection.send(self._head(method, path, body, lines), body, streaming=False)
            response_body = await connection.read_body(deadline)
        except BaseException:
            connection.close()
            raise
        response = UpstreamResponse(connection.status, connection.headers, response_body)
        self._reuse_or_close(connection)
        return response

    async def open_stream(
        self, path: str, body: bytes, piece_seconds: float, seconds: float, lines: bytes = b""
    ) -> ResponseStream:
        """POST; return the response, to be closed, once its headers arrive. Raises as `request`, and StreamIdle."""
        await self._take_slot()
        now = asyncio.get_running_loop().time()
        deadline = now + seconds
        piece_deadline = min(now + piece_seconds, deadline)
        connection: Connection | None = None
        try:
            connection = await self._connect(piece_deadline)
            connection.send(self._head("POST", path, body, lines), body, streaming=True)
            await connection.wait_for_headers(piece_deadline)
        except BaseException as error:
            self._connection_limit.release()
            if connection is not None:
                connection.close()
            if isinstance(error, TimeoutError):
                raise _timeout(piece_deadline, deadline) from error
            raise
        return ResponseStream(self, connection, piece_seconds, deadline)

    async def _take_slot(self) -> None:
        """Take one of the limited connections. Raises NoFreeConnection."""
        if not self._connection_limit.locked():
            await self._connection_limit.acquire()
            return
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._connection_limit.acquire()
        except TimeoutError as error:
            message = f"none became free in {self._wait_seconds:g} s: raise RATCHET_GATEWAY_WORKERS"
            raise NoFreeConnection(message) from error

    def release(self, connection: Connection) -> None:
        """Give back a stream's connection. It is used again if the stream was read to its end."""
        self._connection_limit.release()
        connection.end_stream()
        self._reuse_or_close(connection)

    def close(self) -> None:
        """Close the idle connections. A connection in use is closed by its user."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _head(self, method: str, path: str, body: bytes, lines: bytes) -> bytes:
        """The head of a request. `lines`: its own header lines, which the caller has checked."""
        head = self._heads.get((method, path))
        if head is None:  # There are only as many heads as the gateway has routes.
            text = f"{method} {self._base_path}{path} HTTP/1.1\r\n{self._header_lines}content-length: "
            head = self._heads[method, path] = text.encode("latin-1")
        return b"%b%d\r\n%b\r\n" % (head, len(body), lines)

    async def _connect(self, deadline: float) -> Connection:
        """Return an idle connection, or a new one. Raises NoFreeConnection, ConnectFailed."""
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since < _MAX_IDLE_SECONDS and connection.usable:
                return connection
            connection.close()
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout_at(min(loop.time() + self._connect_seconds, deadline)):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._batch), self._host, self._port, ssl=self._tls
                )
        except OSError as error:  # Includes TimeoutError and ssl.SSLError.
            if _is_shortage(error):
                message = f"this machine refuses it: {error}: raise its limits of open files (ulimit -n) or local ports"
                raise NoFreeConnection(message) from error
            raise ConnectFailed(f"{self._host}:{self._port}: {error!r}") from error
        return connection

    def _reuse_or_close(self, connection: Connection) -> None:
        if connection.complete and connection.reusable and not connection.closed:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()


class ResponseStream:
    """A streamed response, read piece by piece."""

    def __init__(self, client: UpstreamClient, connection: Connection, piece_seconds: float, deadline: float) -> None:
        self._client = client
        self._connection = connection
        self._piece_seconds = piece_seconds
        self._deadline = deadline
        self._clock = asyncio.get_running_loop().time
        self._closed = False
        connection.begin_stream(deadline, self.close)
        self.status = connection.status
        self.headers: Mapping[bytes, bytes] = connection.headers

    async def read_piece(self) -> bytes:
        """Return the next bytes, cut anywhere; empty at the end. Raises ConnectionLost, StreamIdle, TimeoutError."""
        piece_deadline = min(self._clock() + self._piece_seconds, self._deadline)
        try:
            return await self._connection.read_piece(piece_deadline)
        except TimeoutError as error:
            raise _timeout(piece_deadline, self._deadline) from error

    async def read_rest(self) -> bytes:
        """Return everything up to the end."""
        pieces = []
        while piece := await self.read_piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def finish(self) -> None:
        """Read what is left, which is usually just the end, for a second at most: then the connection is reused."""
        if self._connection.complete:
            return
        deadline = min(self._clock() + _END_SECONDS, self._deadline)
        with contextlib.suppress(ConnectionLost, TimeoutError):
            while await self._connection.read_piece(deadline) and self._clock() < deadline:
                pass

    def close(self) -> None:
        """Give the connection back. Idempotent: a stream whose connection is lost or out of time closes itself."""
        if not self._closed:
            self._closed = True
            self._client.release(self._connection)


def _parse_url(url: str) -> tuple[SplitResult, int | None]:
    """Return an address and its port. Raises ConfigurationError."""
    with contextlib.suppress(ValueError):  # A port that is not a number.
        address = urlsplit(url)
        if address.scheme in ("http", "https") and address.hostname:
            return address, address.port
    shown = without_credentials(url)
    raise ConfigurationError(f"{shown!r} is not the address of a model server", "Write it as http://host:port")


def _is_shortage(error: OSError) -> bool:
    """Return True if this machine refused the connection.

    Several addresses that failed make one error without a number. A name that cannot be looked up may be one, too, for
    want of a file, so it is tried whether there is one.
    """
    numbers = {error.errno} if error.errno else {int(number) for number in re.findall(r"Errno (\d+)", str(error))}
    if numbers and numbers <= _SHORTAGES:
        return True
    try:
        socket.socket().close()
    except OSError:
        return True
    return False


def _timeout(piece_deadline: float, deadline: float) -> TimeoutError:
    """The error of a stream that sent nothing until `piece_deadline`: it was idle, or it reached its own deadline."""
    return StreamIdle() if piece_deadline < deadline else TimeoutError()
