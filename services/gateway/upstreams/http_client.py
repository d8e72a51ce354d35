"""A minimal HTTP/1.1 client for one model server: whole responses, and streams piece by piece.

A general client spends time on redirects, cookies, encodings and tracing events, none of which are needed here.
`python -m tests.benchmarks.http_clients` measures the processor time of a request: 38 µs here, 120 in aiohttp, 450 in
httpx. httptools parses the responses (llhttp, Node's parser).
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
from shared.addresses import without_credentials
from shared.errors import ConfigurationError

_MAX_IDLE_SECONDS = 4.0
"""vLLM closes a connection after 5 idle seconds; a request sent on a closing connection costs a retry."""

_END_SECONDS = 1.0
"""How long the end of a response may take after the last piece that its reader wanted."""


class ConnectFailed(ConnectionError):
    """The connection was refused, or not accepted within the connect timeout."""


class StreamIdle(TimeoutError):
    """A stream sent nothing for too long."""


class UpstreamResponse(NamedTuple):
    """A whole response. Header names are in lower case."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class UpstreamClient:
    """The client of the server at `url`, whose path is the prefix of every request's path.

    `connection_limit` limits the connections of all clients together. Raises ConfigurationError for an invalid address.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], connect_seconds: float, connection_limit: asyncio.Semaphore
    ) -> None:
        address, port = _parse_url(url)
        self._tls = ssl.create_default_context() if address.scheme == "https" else None
        self._host = address.hostname or ""
        self._port = port or (443 if self._tls else 80)
        self._base_path = address.path.rstrip("/")
        self._connect_seconds = connect_seconds
        self._connection_limit = connection_limit
        self._idle: list[Connection] = []
        self._heads: dict[tuple[str, str], bytes] = {}
        host = f"[{self._host}]" if ":" in self._host else self._host
        fields = {"host": f"{host}:{port}" if port else host, **headers}
        if address.username is not None:
            user = f"{unquote(address.username)}:{unquote(address.password or '')}"
            fields.setdefault("authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
        self._header_lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())

    async def request(self, method: str, path: str, body: bytes, seconds: float) -> UpstreamResponse:
        """Return a whole response. Raises ConnectFailed, ConnectionLost, TimeoutError.

        A cancelled request closes its connection.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        connection = await self._acquire(deadline)
        try:
            connection.send(self._encode(method, path, body), streaming=False)
            response_body = await connection.read_body(deadline)
        except BaseException:
            connection.close()
            raise
        finally:
            self._connection_limit.release()
        response = UpstreamResponse(connection.status, connection.headers, response_body)
        self._reuse_or_close(connection)
        return response

    async def open_stream(self, path: str, body: bytes, piece_seconds: float, seconds: float) -> ResponseStream:
        """POST; return the response, to be closed, once its headers arrive. Raises as `request`, and StreamIdle."""
        now = asyncio.get_running_loop().time()
        deadline = now + seconds
        piece_deadline = min(now + piece_seconds, deadline)
        try:
            connection = await self._acquire(piece_deadline)
            try:
                connection.send(self._encode("POST", path, body), streaming=True)
                await connection.wait_for_headers(piece_deadline)
            except BaseException:
                connection.close()
                self._connection_limit.release()
                raise
        except TimeoutError as error:
            raise _timeout(piece_deadline, deadline) from error
        return ResponseStream(self, connection, piece_seconds, deadline)

    async def _acquire(self, deadline: float) -> Connection:
        """Take a connection within the limit. Raises ConnectFailed; TimeoutError at `deadline`."""
        if self._connection_limit.locked():
            async with asyncio.timeout_at(deadline):
                await self._connection_limit.acquire()
        else:
            await self._connection_limit.acquire()
        try:
            return await self._connect(deadline)
        except BaseException:
            self._connection_limit.release()
            raise

    def release(self, connection: Connection) -> None:
        """Give back a stream's connection. It is used again if the stream was read to its end."""
        self._connection_limit.release()
        self._reuse_or_close(connection)

    def close(self) -> None:
        """Close the idle connections. A connection in use is closed by its user."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _encode(self, method: str, path: str, body: bytes) -> bytes:
        head = self._heads.get((method, path))
        if head is None:  # There are only as many heads as the gateway has routes.
            text = f"{method} {self._base_path}{path} HTTP/1.1\r\n{self._header_lines}content-length: "
            head = self._heads[method, path] = text.encode("latin-1")
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)

    async def _connect(self, deadline: float) -> Connection:
        """Return an idle connection, or a new one."""
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and now - connection.idle_since < _MAX_IDLE_SECONDS:
                return connection
            connection.close()
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout_at(min(loop.time() + self._connect_seconds, deadline)):
                _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        except OSError as error:  # Includes TimeoutError and ssl.SSLError.
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
        deadline = min(self._clock() + _END_SECONDS, self._deadline)
        with contextlib.suppress(ConnectionLost, TimeoutError):
            while await self._connection.read_piece(deadline) and self._clock() < deadline:
                pass

    def close(self) -> None:
        self._client.release(self._connection)


def _parse_url(url: str) -> tuple[SplitResult, int | None]:
    """Return an address and its port. Raises ConfigurationError."""
    with contextlib.suppress(ValueError):  # A port that is not a number.
        address = urlsplit(url)
        if address.scheme in ("http", "https") and address.hostname:
            return address, address.port
    shown = without_credentials(url)
    raise ConfigurationError(f"{shown!r} is not the address of a model server", "Write it as http://host:port")


def _timeout(piece_deadline: float, deadline: float) -> TimeoutError:
    """The error of a stream that sent nothing until `piece_deadline`: it was idle, or it reached its own deadline."""
    return StreamIdle() if piece_deadline < deadline else TimeoutError()
