"""vLLM's replicas: one that is likely to answer soon, another when it does not, none that is down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self, TypeVar

from services.gateway.observability.metrics import Metrics
from services.gateway.settings import UpstreamLimits
from services.gateway.upstreams.http_client import (
    ConnectFailed,
    ConnectionLost,
    ResponseStream,
    StreamIdle,
    UpstreamClient,
)
from services.gateway.upstreams.pool import Pool, Replica
from services.gateway.upstreams.retries import RetryBudget, Tries
from services.gateway.upstreams.upstream import NotServed as NotServed
from services.gateway.upstreams.upstream import Upstream as Upstream
from services.gateway.upstreams.upstream import UpstreamFailed as UpstreamFailed
from services.gateway.upstreams.upstream import refusal

_PROBE_SECONDS = 1.0
_CALM_PROBES = 5
_PROBE_TIMEOUT_SECONDS = 2.0
_RETRY_SHARE = 0.2

logger = logging.getLogger(__name__)
T = TypeVar("T")
_Begun = tuple[ResponseStream, bytes]
"""A 200 answer and the first piece of its body."""
Broken = Callable[[Replica, OSError], UpstreamFailed]


class Replicas:
    """The replicas of one fleet: each serves every model of it.

    `last_resort`: with all circuits open, ask all the same. `headers` go along with every request.
    """

    def __init__(
        self,
        urls: Sequence[str],
        limits: UpstreamLimits,
        metrics: Metrics,
        *,
        headers: Mapping[str, str] | None = None,
        last_resort: bool = True,
    ) -> None:
        self._pool = Pool(urls, limits.opens_after, last_resort=last_resort)
        self._budget = RetryBudget(_RETRY_SHARE)
        self._limits = limits
        self._metrics = metrics
        fields = {"content-type": "application/json", **(headers or {})}
        slots = asyncio.Semaphore(limits.connections)
        self._origins = {one: UpstreamClient(one.url, fields, limits.connect, slots) for one in self._pool}
        self._answered_at: float | None = None

    async def close(self) -> None:
        for origin in self._origins.values():
            origin.close()

    def answered_within(self, seconds: float) -> bool:
        """Whether any replica answered lately."""
        return self._answered_at is not None and time.monotonic() - self._answered_at < seconds

    async def post(self, path: str, body: bytes) -> bytes:
        raw, replica = await self._ask(self._post, path, body)
        replica.outstanding -= 1
        return raw

    def stream(self, path: str, body: bytes) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return _Stream(lambda: self._ask(self._open, path, body), self._broken_off)

    async def _ask(
        self, ask: Callable[[Replica, str, bytes], Awaitable[T]], path: str, body: bytes
    ) -> tuple[T, Replica]:
        """What the first replica that answers answers. It counts as outstanding there until the caller is done.

        A retry after a lost connection is always safe, since the client was sent nothing, and adds no load: the
        replica that had the request is not working on it any more. One after an error is taken from the budget.
        """
        pool, tries = self._pool, Tries(self._limits.retries)
        self._budget.asked()
        while True:
            replica = pool.pick(time.monotonic(), tries.tried) or tries.again()
            if replica is None:
                raise tries.failure or self._nobody()
            replica.outstanding += 1
            try:
                answer = await ask(replica, path, body)
            except BaseException as error:
                replica.outstanding -= 1
                if not isinstance(error, UpstreamFailed):
                    raise
                self._metrics.upstream_errors.labels(error.reason).inc()
                if not tries.goes_on(replica, error, self._budget):
                    raise tries.failure or error  # noqa: B904 - the failure has its own cause
                continue
            pool.succeeded(replica)
            self._answered_at = time.monotonic()
            return answer, replica

    async def _post(self, replica: Replica, path: str, body: bytes) -> bytes:
        try:
            status, headers, raw = await self._origins[replica].ask("POST", path, body, self._limits.total)
        except OSError as error:
            raise self._unanswered(replica, error, self._limits.total) from error
        if status != 200:
            raise self._refused(replica, status, headers, raw)
        return raw

    async def _open(self, replica: Replica, path: str, body: bytes) -> _Begun:
        """A 200 answer and its first piece. Whatever else happens, the connection is closed."""
        stream: ResponseStream | None = None
        try:
            stream = await self._origins[replica].stream(path, body, self._limits.piece, self._limits.stream)
            if stream.status != 200:
                raise self._refused(replica, stream.status, stream.headers, await stream.rest())
            if not (first := await stream.piece()):
                raise ConnectionLost("an empty stream")
            return stream, first
        except BaseException as error:
            if stream is not None:
                stream.close()
            if isinstance(error, OSError):
                raise self._unanswered(replica, error, self._longest(error)) from error
            raise

    def _unanswered(self, replica: Replica, error: OSError, seconds: float) -> UpstreamFailed:
        gone = isinstance(error, ConnectFailed)
        self._note_failure(replica, error, gone=gone)
        if isinstance(error, TimeoutError):
            return UpstreamFailed(504, f"the model server took longer than {seconds:g} s", "timeout")
        if gone:
            return UpstreamFailed(503, "the model server does not answer; try again", "away", elsewhere=True)
        return UpstreamFailed(502, "the model server broke off; try again", "lost", elsewhere=True)

    def _broken_off(self, replica: Replica, error: OSError) -> UpstreamFailed:
        """Of a stream that had begun: too late for another replica."""
        failed = self._unanswered(replica, error, self._longest(error))
        self._metrics.upstream_errors.labels(failed.reason).inc()
        failed.elsewhere = False
        return failed

    def _longest(self, error: OSError) -> float:
        """The limit that a stream ran into: of its silence, or of the whole."""
        return self._limits.piece if isinstance(error, StreamIdle) else self._limits.stream

    def _refused(self, replica: Replica, status: int, headers: Mapping[bytes, bytes], raw: bytes) -> UpstreamFailed:
        retry_after = _seconds(headers.get(b"retry-after"))
        if status >= 500:
            self._note_failure(replica, f"said {status}")
        else:
            self._pool.succeeded(replica)
            self._answered_at = now = time.monotonic()
            if status == 429 and retry_after:
                self._pool.busy(replica, now + retry_after, now)
        return refusal(status, raw, retry_after)

    def _nobody(self) -> UpstreamFailed:
        now = time.monotonic()
        if (seconds := self._pool.seconds_busy(now)) > 0.0:
            said = f"every model server asks to wait for {seconds:.0f} s"
            return UpstreamFailed(429, said, "busy", retry_after=seconds)
        return UpstreamFailed(503, "no model server answers; try again", "away", elsewhere=True)

    def _note_failure(self, replica: Replica, what: object, *, gone: bool = False) -> None:
        """One line in the log for each circuit that opens, not for each request that failed."""
        was_open = replica.is_open
        self._pool.failed(replica, gone=gone)
        if replica.is_open and not was_open:
            logger.warning("%s is left alone until it answers a probe: %r", replica.url, what)

    async def watch_forever(self) -> None:
        """Background: readiness without traffic, and the way back of a replica whose circuit is open."""
        await asyncio.gather(*(self._watch(replica) for replica in self._pool))

    async def _watch(self, replica: Replica) -> None:
        """Probe it every five seconds, every second while its circuit is open."""
        while True:
            await self._probe(replica)
            for _ in range(_CALM_PROBES):
                await asyncio.sleep(_PROBE_SECONDS)
                if replica.is_open:
                    break

    async def _probe(self, replica: Replica) -> None:
        try:
            status, _, _ = await self._origins[replica].ask("GET", "/v1/models", b"", _PROBE_TIMEOUT_SECONDS)
        except OSError as error:
            self._note_failure(replica, error, gone=isinstance(error, ConnectFailed))
            return
        if status >= 500:
            self._note_failure(replica, f"said {status}")
            return
        if status == 200:
            self._answered_at = time.monotonic()
        if replica.is_open:
            logger.info("%s answers again", replica.url)
        self._pool.probed(replica)


class _Stream:
    """One event stream of a replica. `begin` gives its first piece, `broken` tells what a failure after it means."""

    def __init__(self, begin: Callable[[], Awaitable[tuple[_Begun, Replica]]], broken: Broken) -> None:
        self._begin = begin
        self._broken = broken
        self._first: bytes | None = None
        self._stream: ResponseStream
        self._replica: Replica

    async def __aenter__(self) -> Self:
        (self._stream, self._first), self._replica = await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._replica.outstanding -= 1
        self._stream.close()  # Closes the connection, unless the stream was read to its end.

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            piece = await self._stream.piece()
        except OSError as error:
            raise self._broken(self._replica, error) from error
        if not piece:
            raise StopAsyncIteration
        return piece


def _seconds(header: bytes | None) -> float | None:
    """Of a Retry-After; one that is a date is not worth a clock comparison: None."""
    try:
        seconds = float(header or b"")
    except ValueError:
        return None
    return seconds if 0.0 <= seconds < float("inf") else None
