"""Who may ask what, and how often: API keys, looked up in memory.

The file of keys is read at the start and whenever it changes, by a watch beside the requests. What a request pays is a
look through its headers, one SHA-256 and a dict: about two microseconds. Guessing learns nothing from how long the
look-up takes, since nobody can choose what a guess hashes to. No message quotes a key.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from services.gateway.auth.keys import PREFIX, ApiKey, KeysUnreadable, read_keys
from services.gateway.auth.rate_limits import TokenBucket, TokenBuckets
from shared.http import HttpError

RELOAD_SECONDS = 1.0
"""Between two looks at the file: so late, at most, does a new or revoked key count."""
_LONGEST_KEY = 200
_PREFIX = PREFIX.encode()
_MAKE_ONE = "ratchet keys create APP"

Headers = Sequence[tuple[bytes, bytes]]
Clock = Callable[[], float]
Stamp = tuple[int, ...] | None

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request may. `app` None: keys are off. `tasks` None: all. `expires_at`: Unix seconds."""

    app: str | None = None
    tasks: frozenset[str] | None = None
    expires_at: float = math.inf
    requests: TokenBucket | None = None
    bytes: TokenBucket | None = None

    def sees(self, task: str) -> bool:
        return self.tasks is None or task in self.tasks

    def require(self, task: str) -> None:
        """Raises HttpError 403 for a task that is not the key's, whether it exists or not."""
        if self.tasks is not None and task not in self.tasks:
            own = ", ".join(sorted(self.tasks))
            message = f"this API key is not for the task {task[:100]!r}. Its tasks: {own}"
            raise HttpError(403, message, "task_not_allowed", "model")


UNRESTRICTED = Grant()


class AccessControl:
    """The gateway's keys. Until `start`, nobody gets in. `clock`: Unix seconds; `monotonic`: that of the limits."""

    def __init__(
        self,
        file: Path,
        required: bool = False,
        buckets: TokenBuckets | None = None,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self._file = file
        self._required = required
        self._buckets = buckets or TokenBuckets()
        self._clock = clock
        self._monotonic = monotonic
        self._grants: dict[bytes, Grant] | None = None
        self._stamp: Stamp = None
        self._trouble = "the API keys are not read yet"

    async def start(self) -> None:
        """Read the file. One that is broken lets nobody in; it is logged and told, and the watch goes on."""
        await asyncio.to_thread(self.look)

    async def watch_forever(self) -> None:
        """Background: follow the file."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            await asyncio.to_thread(self.look)

    def check(self, headers: Headers, task: str, size: int = 0) -> str | None:
        """The name of the app that asks for this task; None where keys are off. `headers` as ASGI has them, names in
        lower case; `size` of the body, in bytes. Raises HttpError: 401 no good key, 403 another's task, 429 too much.
        """
        grant = self.grant(headers, size)
        if grant.tasks is not None and task not in grant.tasks:
            grant.require(task)
        return grant.app

    def grant(self, headers: Headers, size: int = 0) -> Grant:
        """The same for a request of several tasks, or of none: the request counts once. Raises HttpError 401, 429."""
        if (grants := self._grants) is None:
            return self._without_keys()
        grant = grants.get(sha256(_key_in(headers)).digest())
        if grant is None:
            _refuse("this API key is not known here. It may be revoked, or of another gateway")
        if self._clock() >= grant.expires_at:
            _refuse(f"this API key of {grant.app} has expired. A new one: ratchet keys rotate {grant.app}")
        if grant.requests is not None and (seconds := grant.requests.take(1.0, self._monotonic())):
            _too_much(f"{grant.app} may ask {grant.requests.rate:g} times a second", seconds)
        if grant.bytes is not None and (seconds := grant.bytes.take(size, self._monotonic())):
            _too_much(f"{grant.app} may send {grant.bytes.burst:g} bytes a minute", seconds)
        return grant

    def missing(self) -> list[str]:
        """Why the gateway can serve nobody: for /readyz."""
        return [self._trouble] if self._grants is None and self._trouble else []

    def notes(self) -> list[str]:
        """What an operator should know of the keys: for /readyz."""
        if self._grants is not None:
            return [f"{self._trouble}; the keys read last hold"] if self._trouble else []
        if self._required:
            return [f"there is no API key, and one is required: every request is refused. {_MAKE_ONE}"]
        return [f"no API keys: whoever reaches the gateway may use it. {_MAKE_ONE}"]

    def look(self) -> None:
        """Read the file if it changed. What was read last stays while it cannot be read, and where it vanished."""
        try:
            if (stamp := _stamp(self._file)) == self._stamp and not self._trouble:
                return
            keys = read_keys(self._file)
            if keys is None and self._grants is not None:
                raise KeysUnreadable(
                    f"the API keys in {self._file} are gone", "A restart without the file opens the door."
                )
        except KeysUnreadable as error:
            if error.reason != self._trouble:
                logger.error("%s. %s", error.reason, error.way_out)
            self._trouble = error.reason
            return
        if keys is not None:
            self._grants = self._granted(keys)
            logger.info("%d API keys are read from %s", len(keys), self._file)
        self._stamp, self._trouble = stamp, ""

    def _granted(self, keys: Sequence[ApiKey]) -> dict[bytes, Grant]:
        grants = {}
        for key in keys:
            rate, size = key.requests_per_second, key.bytes_per_minute
            grants[bytes.fromhex(key.digest)] = Grant(
                key.app,
                frozenset(key.tasks) if key.tasks is not None else None,
                key.expires_at.timestamp() if key.expires_at else math.inf,
                self._buckets.bucket(key.app, "requests", rate, key.burst or max(1.0, rate)) if rate else None,
                self._buckets.bucket(key.app, "bytes", size / 60, size) if size else None,
            )
        return grants

    def _without_keys(self) -> Grant:
        if self._trouble:
            raise HttpError(503, "the gateway cannot read its API keys: see /readyz", "keys_unreadable")
        if self._required:
            _refuse(f"this gateway requires an API key and has none yet. {_MAKE_ONE}")
        return UNRESTRICTED


def _key_in(headers: Headers) -> bytes:
    """The key of a request. `api-key` comes first: where both are sent, a client or proxy wanted its own
    Authorization. Raises HttpError 401."""
    bearer: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            bearer = value
        elif name == b"api-key":
            key = value.strip()
            break
    else:
        if bearer is None:
            _refuse(f"no API key was sent. Send the header `Authorization: Bearer {PREFIX}…`", "missing_api_key")
        scheme, _, key = bearer.partition(b" ")
        if scheme.lower() != b"bearer":
            _refuse(f"the header Authorization must be `Bearer {PREFIX}…`")
        key = key.strip()
    if not key.startswith(_PREFIX) or len(key) > _LONGEST_KEY:
        _refuse(f"this is no API key of this gateway: those begin with {PREFIX}")
    return key


def _refuse(message: str, code: str = "invalid_api_key") -> NoReturn:
    raise HttpError(401, message, code, headers={"www-authenticate": "Bearer"})


def _too_much(limit: str, seconds: float) -> NoReturn:
    """OpenAI's clients wait as the second header says, others as the first."""
    waits = {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}
    raise HttpError(429, f"{limit}; again in {math.ceil(seconds * 10) / 10:g} s", "rate_limit_exceeded", headers=waits)


def _stamp(file: Path) -> Stamp:
    """What changes whenever the file does; None where there is none."""
    try:
        stat = os.stat(file)  # noqa: PTH116 - the same, and no Path in the way
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino
