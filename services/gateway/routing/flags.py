"""Who is served what: Unleash's flags, evaluated in this process from the last state that was seen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
from UnleashClient import UnleashClient
from UnleashClient.cache import BaseCache
from UnleashClient.constants import FEATURES_URL
from UnleashClient.events import BaseEvent, UnleashEventType
from UnleashClient.utils import InstanceAllowType

from services.gateway.routing.arms import TaskFlags, parse_canary, parse_primary
from shared.files import write_atomically

_PROBE_SECONDS = 5.0
_FIRST_FLAGS_SECONDS = 1.0
"""How long a start waits for flags newer than those on disk: long for a server that answers, short for any other."""
_REMEMBERED = 10_000
_NAMES = ("primary", "rollback", "canary")

logger = logging.getLogger(__name__)
T = TypeVar("T")


class FlagReader(Protocol):
    def of(self, task: str, user: str | None) -> TaskFlags: ...


class UnleashFlagReader:
    """A task's flags, evaluated in this process from Unleash's last known state, which is also kept on disk.

    While Unleash is away the last state holds, at a start too; with none ever seen, the base model answers.
    """

    def __init__(self, url: str, token: str, poll_seconds: int, folder: Path) -> None:
        # The SDK logs a stack trace at every poll while the server is away; `reachable` says it once instead.
        logging.getLogger("UnleashClient").setLevel(logging.CRITICAL)
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._features_url = f"{url.rstrip('/')}/api/client/features"
        self._headers = {"Authorization": token}
        self._poll_seconds = poll_seconds
        self._state = UnleashStateFile(folder / "flags.json")
        self._client = UnleashClient(
            url=f"{url.rstrip('/')}/api",
            app_name="ratchet-gateway",
            environment="development",
            custom_headers=self._headers,
            refresh_interval=poll_seconds,
            request_timeout=2,  # A silent server would hold a poll for 150 s with the SDK's defaults.
            request_retries=0,
            disable_metrics=True,
            disable_registration=True,
            cache=self._state,
            multiple_instance_mode=InstanceAllowType.SILENTLY_ALLOW,
            event_callback=self._on_event,
        )
        self._starting: asyncio.Task[None] | None = None
        self._broken: set[str] = set()
        self._live = EnabledFlags(self._state.features)
        self._known: dict[tuple[str, str | None], TaskFlags] = {}
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
        """The task's flags for this user, without I/O. Without a user, sticky rollouts are off.

        Under a microsecond where it is remembered since the last poll, 30 to 100 µs where it is not.
        """
        known = self._known  # Taken once: what is found with an old state must not be remembered with the new one.
        key = (task, user if task in self._live.sticky else None)
        found = known.get(key)
        if found is None:
            found = self._evaluated(*key)
            if len(known) < _REMEMBERED:
                known[key] = found
        return found

    def _evaluated(self, task: str, user: str | None) -> TaskFlags:
        context = {"userId": user} if user else {}
        primary, rollback, canary = (f"ratchet.{task}.{name}" for name in _NAMES)
        return TaskFlags(
            primary=self._parsed(primary, context, parse_primary),
            rollback=rollback in self._live.names and bool(self._client.is_enabled(rollback, context)),
            canary=self._parsed(canary, context, parse_canary),
        )

    def _parsed(self, flag: str, context: dict[str, str], parse: Callable[[str], T]) -> T | None:
        """A payload that a person broke counts as a flag that is off: the safer arm answers, and the log says so."""
        if flag not in self._live.names:
            return None
        variant = self._client.get_variant(flag, context)
        payload = (variant.get("payload") or {}).get("value") if variant.get("enabled") else None
        if payload is None:
            return None
        try:
            return parse(payload)
        except ValueError as error:
            if payload not in self._broken:
                self._broken.add(payload)
                logger.error("flag %s counts as off: %s", flag, error)
            return None

    def _on_event(self, event: BaseEvent) -> None:
        """Called by a thread of the SDK when it has taken over a new state."""
        if event.event_type is UnleashEventType.FETCHED:
            self._live = EnabledFlags(self._state.features)
            self._known = {}

    async def watch_forever(self) -> None:
        """Background: forget what was evaluated, since constraints may name a time; and look whether Unleash answers,
        for /readyz: the SDK does not tell."""
        timeout = aiohttp.ClientTimeout(total=2.0)
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            probe_at = 0.0
            while True:
                self._known = {}
                if loop.time() >= probe_at:
                    await self._probe(session)
                    probe_at = loop.time() + _PROBE_SECONDS
                await asyncio.sleep(self._poll_seconds)

    async def _probe(self, session: aiohttp.ClientSession) -> None:
        try:
            async with session.get(self._features_url) as response:
                answers = response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            answers = False
        if answers is not self.reachable:
            level = logging.INFO if answers else logging.WARNING
            logger.log(level, "Unleash at %s %s", self._features_url, "answers" if answers else _AWAY)
        self.reachable = answers


_AWAY = "is away or refuses the token: the last known flags hold"


class UnleashStateFile(BaseCache):  # type: ignore[misc]  # the SDK has no types
    """What the SDK keeps: in memory, and of it the features in one file, whole or not there, for the next start.

    The SDK's own cache writes in place, several times a poll: torn by a crash, and shared by workers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self._values[FEATURES_URL] = path.read_text()
        if not _is_state(self.features):
            self._values.pop(FEATURES_URL, None)
        self.bootstrapped = bool(self.features)
        """True: the SDK takes the state over at once, before it has asked the server."""

    @property
    def features(self) -> str:
        """The server's answer, JSON; empty if there was none yet."""
        return str(self._values.get(FEATURES_URL, ""))

    def set(self, key: str, value: Any) -> None:
        changed = key == FEATURES_URL and value != self._values.get(key)
        self._values[key] = value
        if changed:
            try:
                write_atomically(self._path, str(value).encode())
            except OSError as error:  # A full disk must not keep a moved flag from moving.
                logger.warning("flags are not kept for the next start: %s", error)

    def mset(self, data: dict[str, Any]) -> None:
        for key, value in data.items():
            self.set(key, value)

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def exists(self, key: str) -> bool:
        return key in self._values

    def destroy(self) -> None:
        """The end of this process is not the end of the state."""


class EnabledFlags:
    """What is worth knowing of a state before asking the SDK, which takes 20 to 30 µs a flag.

    `names`: flags that are not plainly off. `sticky`: tasks with a flag whose answer may differ between users.
    """

    def __init__(self, state: str) -> None:
        features = json.loads(state)["features"] if _is_state(state) else []
        live = [one for one in features if one.get("enabled") and str(one.get("name")).startswith("ratchet.")]
        self.names = frozenset(str(one["name"]) for one in live)
        self.sticky = frozenset(
            str(one["name"]).split(".")[1]
            for one in live
            if str(one["name"]).endswith(tuple(f".{name}" for name in _NAMES)) and not _same_for_everyone(one)
        )


def _same_for_everyone(feature: dict[str, Any]) -> bool:
    """Whether a flag that is on is on for each user, in the same variant. In doubt, no."""
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
        told = json.loads(state)
        return isinstance(told, dict) and isinstance(told.get("features"), list)
    except ValueError:
        return False
