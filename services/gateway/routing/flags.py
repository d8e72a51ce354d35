"""Reads a task's flags from Unleash and evaluates them in this process. `arms.py` decides by them which arm answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from UnleashClient import UnleashClient
from UnleashClient.cache import BaseCache
from UnleashClient.constants import FEATURES_URL
from UnleashClient.events import BaseEvent, UnleashEventType
from UnleashClient.utils import InstanceAllowType

from services.gateway.routing.arms import ServingFlags, parse_canary, parse_primary
from shared.addresses import without_credentials
from shared.files import write_atomically

_POLL_SECONDS = 1
_PROBE_SECONDS = 5.0
_FIRST_FLAGS_SECONDS = 1.0
"""How long a start waits for flags newer than those on disk: a server that answers needs less."""
_MAX_CACHED = 10_000
_FLAG_NAMES = ("primary", "rollback", "canary", "control")

logger = logging.getLogger(__name__)
T = TypeVar("T")


class UnleashFlagReader:
    """Evaluates flags from the last known state of Unleash, which is also saved to disk.

    While Unleash is unreachable that state applies, even after a restart. Without any state, all flags are off and the
    base model answers.
    """

    def __init__(self, url: str, token: str, environment: str, folder: Path) -> None:
        # The SDK logs a stack trace at every poll while the server is down; we log each change of `reachable`.
        logging.getLogger("UnleashClient").setLevel(logging.CRITICAL)
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._features_url = f"{url.rstrip('/')}/api/client/features"
        self._headers = {"Authorization": token}
        self._state = UnleashStateFile(folder / "flags.json")
        self._client = UnleashClient(
            url=f"{url.rstrip('/')}/api",
            app_name="ratchet-gateway",
            environment=environment,
            custom_headers=self._headers,
            refresh_interval=_POLL_SECONDS,
            request_timeout=2,  # With the SDK's defaults a silent server blocks a poll for 150 s.
            request_retries=0,
            disable_metrics=True,
            disable_registration=True,
            cache=self._state,
            multiple_instance_mode=InstanceAllowType.SILENTLY_ALLOW,
            event_callback=self._on_event,
        )
        self._starting: asyncio.Task[None] | None = None
        self._reported: set[str] = set()
        self._enabled = EnabledFlags(self._state.features)
        self._cache: dict[tuple[str, str | None, str | None], ServingFlags] = {}
        self.reachable: bool | None = None

    async def start(self) -> None:
        """Wait for the flags, but not for long: a start never depends on Unleash."""
        if self._starting is None:
            self._starting = asyncio.create_task(asyncio.to_thread(self._client.initialize_client))
        done, _ = await asyncio.wait({self._starting}, timeout=_FIRST_FLAGS_SECONDS)
        for started in done:
            started.result()  # Raises an internal error or one of a setting, never that Unleash is down.

    async def close(self) -> None:
        await asyncio.to_thread(self._client.destroy)

    def read(self, task: str, user: str | None, subject: str | None = None) -> ServingFlags:
        """The task's flags as they apply to this user, without I/O. Without a user, sticky rollouts are off, but for
        canary and control, which are sticky by the `subject` then.

        Takes under a microsecond if cached since the last poll, else 30 to 100 µs.
        """
        cache = self._cache  # Read once: a result of an old state must not be cached for the new one.
        key = (task, user, subject) if task in self._enabled.sticky_tasks else (task, None, None)
        flags = cache.get(key)
        if flags is None:
            flags = self._evaluate(*key)
            if len(cache) < _MAX_CACHED:
                cache[key] = flags
        return flags

    def _evaluate(self, task: str, user: str | None, subject: str | None) -> ServingFlags:
        context = {"userId": user} if user else {}
        sticky = {"userId": subject} if subject and not user else context
        primary, rollback, canary, control = (f"ratchet.{task}.{name}" for name in _FLAG_NAMES)
        return ServingFlags(
            primary=self._payload(primary, context, parse_primary),
            rollback=rollback in self._enabled.names and bool(self._client.is_enabled(rollback, context)),
            canary=self._payload(canary, sticky, parse_canary),
            control=control in self._enabled.names and bool(self._client.is_enabled(control, sticky)),
        )

    def _payload(self, flag: str, context: dict[str, str], parse: Callable[[str], T]) -> T | None:
        """A flag's payload; None if it is off. An invalid one counts as off, so the safer arm answers; it is logged."""
        if flag not in self._enabled.names:
            return None
        variant = self._client.get_variant(flag, context)
        payload = (variant.get("payload") or {}).get("value") if variant.get("enabled") else None
        if payload is None:
            return None
        try:
            return parse(payload)
        except ValueError as error:
            if payload not in self._reported:
                self._reported.add(payload)
                logger.error("invalid payload, flag %s counts as off: %s", flag, error)
            return None

    def _on_event(self, event: BaseEvent) -> None:
        """Called by a thread of the SDK after it has fetched a new state."""
        if event.event_type is UnleashEventType.FETCHED:
            self._enabled = EnabledFlags(self._state.features)
            self._cache = {}

    async def watch_forever(self) -> None:
        """Background: clear the cache, since a flag may depend on the time, and probe Unleash for /readyz, as the SDK
        does not report whether it is reachable."""
        timeout = aiohttp.ClientTimeout(total=2.0)
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            probe_at = 0.0
            while True:
                self._cache = {}
                if loop.time() >= probe_at:
                    await self._probe(session)
                    probe_at = loop.time() + _PROBE_SECONDS
                await asyncio.sleep(_POLL_SECONDS)

    async def _probe(self, session: aiohttp.ClientSession) -> None:
        try:
            async with session.get(self._features_url) as response:
                answers = response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            answers = False
        if answers is not self.reachable:
            level = logging.INFO if answers else logging.WARNING
            state = "reachable" if answers else "unreachable or refuses the token: the last known flags apply"
            logger.log(level, "Unleash at %s is %s", without_credentials(self._features_url), state)
        self.reachable = answers


class UnleashStateFile(BaseCache):  # type: ignore[misc]  # the SDK has no types
    """The SDK's cache: in memory, with the features also in a file, written atomically, for the next start.

    The SDK's own file cache writes in place several times a poll, so a crash tears it, and workers would share it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self._values[FEATURES_URL] = path.read_text()
        if not _is_state(self.features):
            self._values.pop(FEATURES_URL, None)
        self.bootstrapped = bool(self.features)
        """True makes the SDK use this state before it has asked the server."""

    @property
    def features(self) -> str:
        """The server's last answer, JSON; empty before the first."""
        return str(self._values.get(FEATURES_URL, ""))

    def set(self, key: str, value: Any) -> None:
        changed = key == FEATURES_URL and value != self._values.get(key)
        self._values[key] = value
        if changed:
            try:
                write_atomically(self._path, str(value).encode())
            except OSError as error:  # With a full disk, flags must still change.
                logger.warning("flags are not saved for the next start: %s", error)

    def mset(self, data: dict[str, Any]) -> None:
        for key, value in data.items():
            self.set(key, value)

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def exists(self, key: str) -> bool:
        return key in self._values

    def destroy(self) -> None:
        """Does nothing: the state outlives the process."""


class EnabledFlags:
    """An index of a state, to avoid asking the SDK, which takes 20 to 30 µs a flag.

    `names`: flags that are enabled. `sticky_tasks`: tasks with a flag whose value may differ between users.
    """

    def __init__(self, state: str) -> None:
        features = json.loads(state)["features"] if _is_state(state) else []
        enabled = [flag for flag in features if flag.get("enabled") and str(flag.get("name")).startswith("ratchet.")]
        self.names = frozenset(str(flag["name"]) for flag in enabled)
        self.sticky_tasks = frozenset(
            str(flag["name"]).split(".")[1]
            for flag in enabled
            if str(flag["name"]).endswith(tuple(f".{name}" for name in _FLAG_NAMES)) and not _same_for_everyone(flag)
        )


def _same_for_everyone(feature: dict[str, Any]) -> bool:
    """Return True if an enabled flag surely has the same value for every user."""
    if feature.get("variants") or feature.get("dependencies"):
        return False
    return all(
        not strategy.get("constraints")
        and not strategy.get("segments")
        and len(strategy.get("variants") or ()) <= 1
        and (strategy.get("name") == "default" or _is_for_all(strategy))
        for strategy in feature.get("strategies") or ()
    )


def _is_for_all(strategy: dict[str, Any]) -> bool:
    parameters = strategy.get("parameters") or {}
    everyone = str(parameters.get("rollout")) == "100" and parameters.get("stickiness") in ("default", "random")
    return strategy.get("name") == "flexibleRollout" and everyone


def _is_state(state: str) -> bool:
    try:
        value = json.loads(state)
        return isinstance(value, dict) and isinstance(value.get("features"), list)
    except ValueError:
        return False
