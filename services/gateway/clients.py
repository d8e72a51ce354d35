"""What the gateway asks of others: Unleash (who serves whom) and vLLM (the answer)."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import orjson
from UnleashClient import UnleashClient
from UnleashClient.utils import InstanceAllowType

from services.gateway.domain import TaskFlags, parse_canary, parse_primary
from services.gateway.metrics import Metrics

_AWAY_SECONDS = 2.0
"""A replica that did not answer is asked last for this long."""
_PROBE_SECONDS = 5.0
_FIRST_FLAGS_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Flags(Protocol):
    def of(self, task: str, user: str | None) -> TaskFlags: ...


class UnleashFlags:
    """A task's flags, evaluated in this process from Unleash's last known state, which is also kept on disk.

    While Unleash is away the last state holds; with none ever seen, the base model answers.
    """

    def __init__(self, url: str, token: str, poll_seconds: int, cache: Path) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        # The SDK logs a stack trace at every poll while the server is away; `reachable` says it once instead.
        logging.getLogger("UnleashClient").setLevel(logging.CRITICAL)
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._features_url = f"{url.rstrip('/')}/api/client/features"
        self._headers = {"Authorization": token}
        self._client = UnleashClient(
            url=f"{url.rstrip('/')}/api",
            app_name="ratchet-gateway",
            environment="development",
            custom_headers=self._headers,
            refresh_interval=poll_seconds,
            request_timeout=2,  # A silent server would hold the start for 150 s with the SDK's defaults.
            request_retries=0,
            disable_metrics=True,
            disable_registration=True,
            cache_directory=str(cache),
            multiple_instance_mode=InstanceAllowType.SILENTLY_ALLOW,
        )
        self._starting: asyncio.Task[None] | None = None
        self._broken: set[str] = set()
        self.reachable: bool | None = None

    async def start(self) -> None:
        """Read the flags, or give up waiting for them: a start never depends on Unleash."""
        if self._starting is None:
            self._starting = asyncio.create_task(asyncio.to_thread(self._client.initialize_client))
        done, _ = await asyncio.wait({self._starting}, timeout=_FIRST_FLAGS_SECONDS)
        for started in done:
            started.result()  # What it raises is a mistake of ours or of a setting, never Unleash being away.

    async def close(self) -> None:
        await asyncio.to_thread(self._client.destroy)

    def of(self, task: str, user: str | None) -> TaskFlags:
        """The task's flags for this user (20–100 µs, no I/O). Without a user, sticky rollouts are off."""
        context = {"userId": user} if user else {}
        prefix = f"ratchet.{task}"
        primary = self._payload(f"{prefix}.primary", context)
        canary = self._payload(f"{prefix}.canary", context)
        return TaskFlags(
            primary=self._parsed(f"{prefix}.primary", primary, parse_primary),
            rollback=bool(self._client.is_enabled(f"{prefix}.rollback", context)),
            canary=self._parsed(f"{prefix}.canary", canary, parse_canary),
        )

    def _payload(self, flag: str, context: dict[str, str]) -> str | None:
        variant = self._client.get_variant(flag, context)
        return (variant.get("payload") or {}).get("value") if variant.get("enabled") else None

    def _parsed(self, flag: str, payload: str | None, parse: Any) -> Any:
        """A payload that a person broke counts as a flag that is off: the safer arm answers, and the log says so."""
        if payload is None:
            return None
        try:
            return parse(payload)
        except ValueError as error:
            if payload not in self._broken:
                self._broken.add(payload)
                logger.error("flag %s counts as off: %s", flag, error)
            return None

    async def watch_forever(self) -> None:
        """Background: whether Unleash answers, for /readyz. The SDK does not tell."""
        timeout = aiohttp.ClientTimeout(total=2.0)
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            while True:
                try:
                    async with session.get(self._features_url) as response:
                        answers = response.status == 200
                except (aiohttp.ClientError, TimeoutError):
                    answers = False
                if answers is not self.reachable:
                    logger.log(
                        logging.INFO if answers else logging.WARNING,
                        "Unleash at %s %s", self._features_url, "answers" if answers else "is away: last flags hold",
                    )  # fmt: skip
                self.reachable = answers
                await asyncio.sleep(_PROBE_SECONDS)


class UpstreamFailed(Exception):
    """No answer. `elsewhere`: another replica may have one. `status`: what the client is told."""

    def __init__(self, status: int, message: str, reason: str, *, elsewhere: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.elsewhere = elsewhere


class NotServed(UpstreamFailed):
    """The replica does not know the model that it was asked for."""


class Upstream(Protocol):
    async def complete(self, body: bytes) -> Any:
        """The answer, decoded. Raises UpstreamFailed, NotServed if no replica serves the model."""


class VllmReplicas:
    """vLLM's replicas in turn. One that fails before it answered is passed over for the next."""

    def __init__(
        self, urls: Sequence[str], seconds: float, connect_seconds: float, connections: int, metrics: Metrics
    ) -> None:
        self._urls = tuple(urls)
        self._turn = itertools.cycle(range(len(self._urls)))
        self._timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=connect_seconds)
        self._connections = connections
        self._metrics = metrics
        self._session: aiohttp.ClientSession | None = None
        self._away_until: dict[str, float] = {}
        self._answered_at: float | None = None

    async def start(self) -> None:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections)
            self._session = aiohttp.ClientSession(timeout=self._timeout, connector=connector)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def answered_within(self, seconds: float) -> bool:
        """Whether any replica answered lately."""
        return self._answered_at is not None and time.monotonic() - self._answered_at < seconds

    async def complete(self, body: bytes) -> Any:
        """The answer of the first replica that has one. Raises UpstreamFailed when none has."""
        failures: list[UpstreamFailed] = []
        for url in self._in_order():
            try:
                return await self._post(url, body)
            except UpstreamFailed as error:
                self._metrics.upstream_errors.labels(error.reason).inc()
                if not error.elsewhere:
                    raise
                failures.append(error)
        # A replica that is up and lacks the model says more than one that is away: another arm can answer.
        raise next((error for error in failures if isinstance(error, NotServed)), failures[-1])

    async def watch_forever(self) -> None:
        """Background: look whether replicas are there, so that readiness does not wait for traffic."""
        await self.start()
        assert self._session is not None  # noqa: S101 - `start` made it
        while True:
            for url in self._urls:
                try:
                    timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS)
                    async with self._session.get(f"{url}/v1/models", timeout=timeout) as response:
                        if response.status == 200:
                            self._answered_at = time.monotonic()
                            self._away_until.pop(url, None)
                except (aiohttp.ClientError, TimeoutError):
                    self._away_until[url] = time.monotonic() + _AWAY_SECONDS
            await asyncio.sleep(_PROBE_SECONDS)

    def _in_order(self) -> list[str]:
        first = next(self._turn)
        turn = self._urls[first:] + self._urls[:first]
        now = time.monotonic()
        return sorted(turn, key=lambda url: self._away_until.get(url, 0.0) > now)

    async def _post(self, url: str, body: bytes) -> Any:
        if self._session is None:
            raise RuntimeError("VllmReplicas.start() was not called")
        try:
            async with self._session.post(
                f"{url}/v1/chat/completions", data=body, headers={"content-type": "application/json"}
            ) as response:
                raw = await response.read()
                status = response.status
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientError) as error:
            self._away_until[url] = time.monotonic() + _AWAY_SECONDS
            away = "the model server does not answer; try again"
            logger.warning("%s: %r", url, error)
            raise UpstreamFailed(503, away, "away", elsewhere=True) from error
        except TimeoutError as error:
            slow = f"the model server took longer than {self._timeout.total:g} s"
            raise UpstreamFailed(504, slow, "timeout") from error
        if status != 200:
            raise _refusal(status, raw)
        try:
            answer = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise UpstreamFailed(502, "the model server sent no JSON", "garbled", elsewhere=True) from error
        self._answered_at = time.monotonic()
        return answer


def _refusal(status: int, raw: bytes) -> UpstreamFailed:
    message = _message(raw) or f"the model server said {status}"
    # vLLM says 404 for a name it does not know, and 400 for an adapter whose files it found but could not load.
    if status == 404 or (status == 400 and "LoRA adapter" in message):
        return NotServed(status, message, "not_served", elsewhere=True)
    elsewhere = status == 429 or status >= 500
    return UpstreamFailed(status, message, f"status_{status}", elsewhere=elsewhere)


def _message(raw: bytes) -> str:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    error = body.get("error", body) if isinstance(body, dict) else {}
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else ""
