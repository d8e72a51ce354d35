"""Requests to the replicas of one vLLM fleet: load balancing, circuit breakers with probes, retries."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from services.gateway.observability.metrics import Metrics
from services.gateway.observability.rate_limited_log import RateLimitedWarning
from services.gateway.settings import UpstreamLimits
from services.gateway.upstreams.http_client import (
    ConnectFailed,
    ConnectionLost,
    NoFreeConnection,
    ResponseStream,
    StreamIdle,
    UpstreamClient,
)
from services.gateway.upstreams.pool import ModelReplica, ReplicaPool
from services.gateway.upstreams.replica_stream import OpenStream, ReplicaStream
from services.gateway.upstreams.retries import Attempts, RetryBudget
from services.gateway.upstreams.upstream import (
    ModelNotServed,
    ServerKey,
    UpstreamFailed,
    error_of_response,
    is_servers_failure,
    listed_models,
    no_connection,
    retry_after_of,
    timed_out,
)
from shared.addresses import without_credentials

_PROBE_SECONDS = 1.0
_HEALTHY_PROBE_EVERY = 5
_PROBE_TIMEOUT_SECONDS = 2.0
_MAX_RETRY_SHARE = 0.2

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Replicas:
    """An `Upstream` of replicas that are to serve the same models; one that restarted may lack adapters for a while.

    `last_resort`: send requests even with all circuits open. `key` is sent with every request.
    """

    def __init__(
        self,
        urls: Sequence[str],
        limits: UpstreamLimits,
        metrics: Metrics,
        *,
        key: ServerKey | None = None,
        last_resort: bool = True,
    ) -> None:
        shown = [without_credentials(url) for url in urls]
        self._pool = ReplicaPool(shown, limits.opens_after, last_resort=last_resort)
        self._budget = RetryBudget(_MAX_RETRY_SHARE)
        self._limits = limits
        self._metrics = metrics
        self._key = key or ServerKey()
        fields = {"content-type": "application/json", **self._key.headers}
        connection_limit = asyncio.Semaphore(limits.connections)
        self._clients = {
            replica: UpstreamClient(url, fields, limits.connect, connection_limit, limits.wait)
            for replica, url in zip(self._pool, urls, strict=True)
        }
        self.refuses_key = False
        """Whether the last answer of a replica was that it refused the gateway's key."""
        self._shortages, self._refusals = RateLimitedWarning(logger), RateLimitedWarning(logger)
        self._answered_at: float | None = None

    async def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def answered_within(self, seconds: float) -> bool:
        """Return True if any replica answered within the last `seconds`."""
        return self._answered_at is not None and time.monotonic() - self._answered_at < seconds

    async def post(self, path: str, body: bytes, lines: bytes = b"", model: str = "") -> bytes:
        answer, replica = await self._try_replicas(lambda chosen: self._post(chosen, path, body, lines), model)
        replica.outstanding -= 1
        return answer

    def stream(self, path: str, body: bytes, lines: bytes = b"", model: str = "") -> ReplicaStream:
        def send(chosen: ModelReplica) -> Awaitable[OpenStream]:
            return self._open(chosen, path, body, lines)

        return ReplicaStream(lambda: self._try_replicas(send, model), self._broken_off)

    async def _try_replicas(self, send: Callable[[ModelReplica], Awaitable[T]], model: str) -> tuple[T, ModelReplica]:
        """Return the first response, and its replica, whose `outstanding` the caller decrements when done.

        A retry after a lost connection is safe, since the client was sent nothing, and adds no load: the replica
        that had the request has stopped working on it. A retry after an error is taken from the budget.
        """
        pool, attempts = self._pool, Attempts(self._limits.retries)
        self._budget.record_request()
        while True:
            replica = pool.pick(time.monotonic(), attempts.tried, model) or attempts.take_lost()
            if replica is None:
                raise self._given_up(attempts) or self._none_available()
            replica.outstanding += 1
            try:
                response = await send(replica)
            except BaseException as error:
                replica.outstanding -= 1
                if not isinstance(error, UpstreamFailed):
                    raise
                self._metrics.upstream_errors.labels(error.reason).inc()
                if isinstance(error, ModelNotServed) and model:
                    replica.missing.add(model)  # It restarted since it listed it. The next probe lists anew.
                if not attempts.should_retry(replica, error, self._budget):
                    raise self._given_up(attempts) or error  # noqa: B904 - the failure has its own cause
                continue
            pool.record_success(replica, model)
            self._answered_at = time.monotonic()
            self.refuses_key = False
            return response, replica

    def _given_up(self, attempts: Attempts) -> UpstreamFailed | None:
        """The failure of attempts that end here, which says whether a replica may be there all the same."""
        failure, lost = attempts.failure, attempts.take_lost()
        if failure is not None:
            may_answer = lost is not None and not lost.circuit_open  # Perhaps only its idle connection had ended.
            failure.left_untried = may_answer or self._pool.may_answer(attempts.tried)
        return failure

    async def _post(self, replica: ModelReplica, path: str, body: bytes, lines: bytes) -> bytes:
        try:
            response = await self._clients[replica].request("POST", path, body, self._limits.total, lines)
        except OSError as error:
            raise self._connection_error(replica, error, self._limits.total) from error
        if response.status != 200:
            raise self._error_response(replica, response.status, response.headers, response.body)
        return response.body

    async def _open(self, replica: ModelReplica, path: str, body: bytes, lines: bytes) -> OpenStream:
        """Return a 200 response and its first piece. In every other case the connection is closed."""
        stream: ResponseStream | None = None
        try:
            client, limits = self._clients[replica], self._limits
            stream = await client.open_stream(path, body, limits.piece, limits.stream, lines)
            if stream.status != 200:
                raise self._error_response(replica, stream.status, stream.headers, await stream.read_rest())
            if not (first := await stream.read_piece()):
                raise ConnectionLost("the stream is empty")
            return stream, first
        except BaseException as error:
            if stream is not None:
                stream.close()
            if isinstance(error, StreamIdle) and (stream is None or stream.status == 200):
                raise timed_out(self._limits.piece) from error
            if isinstance(error, OSError):
                raise self._connection_error(replica, error, self._limit_of(error)) from error
            raise

    def _connection_error(self, replica: ModelReplica, error: OSError, seconds: float) -> UpstreamFailed:
        """The error of a request without a whole answer. `seconds`: the time limit that a TimeoutError exceeded.

        An answer that reached our own deadline is no failure of the server: it may be long, or its reader slow. Nor is
        a stream that does not begin in time: its prompt may be long, or wait its turn. Whether the server lives is what
        the probes ask; else the long answers of one task would send all tasks elsewhere.
        """
        if isinstance(error, NoFreeConnection):
            return self._shortage(replica, error)
        if isinstance(error, TimeoutError) and not isinstance(error, StreamIdle):
            return timed_out(seconds)
        refused = isinstance(error, ConnectFailed)
        self._record_failure(replica, error, refused=refused)
        if isinstance(error, StreamIdle):
            return timed_out(seconds)
        if refused:
            return UpstreamFailed(
                503, "upstream unavailable: cannot connect; try again", "away", another_may_answer=True
            )
        return UpstreamFailed(502, "upstream connection lost; try again", "lost", another_may_answer=True)

    def _shortage(self, replica: ModelReplica, error: NoFreeConnection) -> UpstreamFailed:
        """The error of a request that the gateway itself could not send. It says nothing about the server, so no
        circuit counts it, and no other server, least of all the external API, is asked instead."""
        self._shortages.log("no connection to %s: %s", replica.url, error)
        return no_connection()

    def _broken_off(self, replica: ModelReplica, error: OSError) -> UpstreamFailed:
        """The error of a stream that had begun: it is too late to try another replica."""
        failure = self._connection_error(replica, error, self._limit_of(error))
        self._metrics.upstream_errors.labels(failure.reason).inc()
        failure.another_may_answer = False
        return failure

    def _limit_of(self, error: OSError) -> float:
        """The time limit, in seconds, that a stream exceeded."""
        return self._limits.piece if isinstance(error, StreamIdle) else self._limits.stream

    def _error_response(
        self, replica: ModelReplica, status: int, headers: Mapping[bytes, bytes], raw: bytes
    ) -> UpstreamFailed:
        retry_after = retry_after_of(headers)
        if is_servers_failure(status):
            self._record_failure(replica, f"status {status}", erred=status == 500)
        else:
            self._pool.record_success(replica)
            self._answered_at = now = time.monotonic()
            if status == 429 and retry_after:
                self._pool.pause(replica, now + retry_after, now)
        error = error_of_response(status, raw, retry_after)
        if status in (401, 403) and error.refused_field is None:
            return self._refused(replica, status)
        return error

    def _refused(self, replica: ModelReplica, status: int) -> UpstreamFailed:
        self.refuses_key = True
        self._refusals.log("%s refuses the gateway's key with %d: correct %s", replica.url, status, self._key.setting)
        return self._key.refused()

    def _none_available(self) -> UpstreamFailed:
        now = time.monotonic()
        if (seconds := self._pool.seconds_until_available(now)) > 0.0:
            message = f"every model server is busy: try again in {seconds:.0f} s"
            return UpstreamFailed(429, message, "busy", retry_after=seconds)
        if self._pool.answers_with_errors:  # To one client's requests, perhaps: nobody's prompts leave for that.
            message = "every model server that is there answers with errors; try again"
            return UpstreamFailed(503, message, "server_errors", retry_after=_PROBE_SECONDS)
        message = "upstream unavailable: no model server answers; try again"
        return UpstreamFailed(503, message, "away", another_may_answer=True)

    def _record_failure(
        self, replica: ModelReplica, reason: object, *, refused: bool = False, erred: bool = False
    ) -> None:
        """Log each circuit that opens, not each request that fails."""
        was_open = replica.circuit_open
        self._pool.record_failure(replica, refused=refused, erred=erred)
        if replica.circuit_open and not was_open:
            logger.warning("circuit breaker open until %s answers a probe: %r", replica.url, reason)

    async def watch_forever(self) -> None:
        """Background: probe the replicas, for readiness without traffic, to close circuits again, and for what each
        serves: one that restarted is asked for an adapter only once it lists it."""
        await asyncio.gather(*(self._probe_forever(replica) for replica in self._pool))

    async def _probe_forever(self, replica: ModelReplica) -> None:
        """Probe a replica every five seconds, or every second while its circuit is open."""
        while True:
            await self._probe(replica)
            for _ in range(_HEALTHY_PROBE_EVERY):
                await asyncio.sleep(_PROBE_SECONDS)
                if replica.circuit_open:
                    break

    async def _probe(self, replica: ModelReplica) -> None:
        try:
            status, _, body = await self._clients[replica].probe("/v1/models", _PROBE_TIMEOUT_SECONDS)
        except NoFreeConnection as error:
            self._shortage(replica, error)
            return
        except OSError as error:
            self._record_failure(replica, error, refused=isinstance(error, ConnectFailed))
            return
        if status >= 500:
            self._record_failure(replica, f"status {status}")
            return
        replica.set_models(listed_models(body) if status == 200 else None)  # Before its circuit closes.
        if status in (401, 403):
            self._refused(replica, status)
        if status == 200:
            self._answered_at = time.monotonic()
            self.refuses_key = False
        if replica.circuit_open:
            logger.info("circuit breaker half-open: %s answered a probe", replica.url)
        self._pool.half_open(replica)
