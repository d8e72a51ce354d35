"""APIs that others run, asked over httpx, with its TLS, proxies and connection pool: one try, no probes, since each
request is paid for. The fast client of `http_client.py` is for our own model servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from urllib.parse import urlsplit

import httpx

from services.gateway.observability.rate_limited_log import RateLimitedWarning
from services.gateway.settings import UpstreamLimits
from services.gateway.upstreams.http_client import UpstreamResponse
from services.gateway.upstreams.upstream import (
    ServerKey,
    UpstreamFailed,
    error_of_response,
    no_connection,
    retry_after_of,
    timed_out,
)
from shared.addresses import without_credentials

logger = logging.getLogger(__name__)


class OutsideStream(AsyncIterator[bytes]):
    """The pieces of a streamed answer, and its headers."""

    def __init__(self, headers: Mapping[bytes, bytes], pieces: AsyncIterator[bytes]) -> None:
        self.headers = headers
        self._pieces = pieces

    async def __anext__(self) -> bytes:
        return await anext(self._pieces)


class OutsideApi:
    """An `Upstream`. `url`: its base URL as OpenAI clients take it; of a server's address alone that is its `/v1`."""

    def __init__(self, url: str, key: ServerKey, limits: UpstreamLimits) -> None:
        self._url = url.rstrip("/") if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1"
        self._key = key
        self._limits = limits
        self._refusals = RateLimitedWarning(logger)
        self._client = httpx.AsyncClient(
            headers={"content-type": "application/json", "accept-encoding": "identity", **key.headers},
            timeout=httpx.Timeout(None, connect=limits.connect, pool=limits.wait),
            limits=httpx.Limits(max_connections=limits.connections),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def post(self, path: str, body: bytes, lines: bytes = b"", model: str = "") -> bytes:
        return (await self.request(path, body, lines, model)).body

    async def request(self, path: str, body: bytes, lines: bytes = b"", model: str = "") -> UpstreamResponse:
        with _errors(self._limits.total):
            async with asyncio.timeout(self._limits.total):
                response = await self._client.send(self._request(path, body, lines))
        if response.status_code != 200:
            raise self.error_of(response)
        return UpstreamResponse(200, _headers(response), response.content)

    def stream(
        self, path: str, body: bytes, lines: bytes = b"", model: str = ""
    ) -> AbstractAsyncContextManager[OutsideStream]:
        return self._stream(path, body, lines)

    @contextlib.asynccontextmanager
    async def _stream(self, path: str, body: bytes, lines: bytes) -> AsyncIterator[OutsideStream]:
        ends = asyncio.get_running_loop().time() + self._limits.stream
        with _errors(self._limits.piece):
            async with asyncio.timeout(self._limits.piece):
                response = await self._client.send(self._request(path, body, lines), stream=True)
        try:
            if response.status_code != 200:
                with _errors(self._limits.piece):
                    async with asyncio.timeout(self._limits.piece):
                        await response.aread()
                raise self.error_of(response)
            yield OutsideStream(_headers(response), self._pieces(response, ends))
        finally:
            await response.aclose()

    async def _pieces(self, response: httpx.Response, ends: float) -> AsyncIterator[bytes]:
        pieces, clock = response.aiter_bytes(), asyncio.get_running_loop().time
        piece: bytes | None = b""
        while piece is not None:
            until = min(clock() + self._limits.piece, ends)
            with _errors(self._limits.stream if until == ends else self._limits.piece):
                async with asyncio.timeout_at(until):
                    piece = await anext(pieces, None)
            if piece:
                yield piece

    def _request(self, path: str, body: bytes, lines: bytes) -> httpx.Request:
        """Paths that do not begin with `/v1`, as `/v2/rerank`, come after what is before the base URL's own `/v1`."""
        base, rest = self._url.removesuffix("/v1"), path
        if path.startswith("/v1/"):
            base, rest = self._url, path.removeprefix("/v1")
        headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines.splitlines())]
        return self._client.build_request("POST", f"{base}{rest}", content=body, headers=headers)

    def error_of(self, response: httpx.Response) -> UpstreamFailed:
        """The error for a response that is not 200, which has been read."""
        status, retry_after = response.status_code, retry_after_of(_headers(response))
        error = error_of_response(status, response.content, retry_after)
        if status in (401, 403) and error.refused_field is None:
            url, setting = without_credentials(self._url), self._key.setting
            self._refusals.log("%s refuses the gateway's key with %d: correct %s", url, status, setting)
            return self._key.refused()
        return error


def _headers(response: httpx.Response) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in response.headers.raw}


@contextlib.contextmanager
def _errors(seconds: float) -> Iterator[None]:
    """Convert the errors of a request. `seconds`: its time limit."""
    try:
        yield
    except httpx.PoolTimeout as error:
        raise no_connection() from error
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise UpstreamFailed(503, "upstream unavailable: cannot connect; try again", "away") from error
    except TimeoutError as error:
        raise timed_out(seconds) from error
    except httpx.HTTPError as error:
        raise UpstreamFailed(502, "upstream connection lost; try again", "lost") from error
