"""Access control by API key: which tasks a request may use, and how often.

The keys file is read at the start and whenever it changes, in the background. A request costs a scan of its headers,
one SHA-256 and a dict look-up: about two microseconds. The look-up's duration reveals nothing about a key, because
nobody can choose what a guess hashes to. No message quotes a key.
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

from services.gateway.auth.keys import PREFIX, ApiKey, KeysUnreadable, read_keys, remember_keys
from services.gateway.auth.rate_limits import TokenBucket, TokenBuckets
from shared.addresses import host_name, is_ip_address, is_loopback
from shared.http import HttpError

RELOAD_SECONDS = 1.0
"""Between two checks of the file: a new or revoked key takes effect within this time."""
_MAX_KEY_BYTES = 200
_PREFIX = PREFIX.encode()
_CREATE_COMMAND = "ratchet keys create APP"
_OPEN_SETTING = "RATCHET_GATEWAY_REQUIRE_KEYS=false"
_CLOSED_WAY_OUT = f"{_CREATE_COMMAND} makes one; {_OPEN_SETTING} opens the gateway to anyone who reaches it"

Headers = Sequence[tuple[bytes, bytes]]
Clock = Callable[[], float]
FileVersion = tuple[int, ...] | None

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request may do. `app` None: keys are off. `tasks` None: all tasks. `expires_at`: Unix seconds.

    `pass_through`: it may name a model that is no task. Never without a key.
    """

    app: str | None = None
    tasks: frozenset[str] | None = None
    expires_at: float = math.inf
    requests: TokenBucket | None = None
    bytes: TokenBucket | None = None
    pass_through: bool = False

    def allows(self, task: str) -> bool:
        return self.tasks is None or task in self.tasks

    def require(self, task: str) -> None:
        """Raises HttpError 403 for a task that is not the key's, whether or not it exists."""
        if self.tasks is not None and task not in self.tasks:
            allowed = ", ".join(sorted(self.tasks))
            message = f"this API key is not for the task {task[:100]!r}. Its tasks: {allowed}"
            raise HttpError(403, message, "task_not_allowed", "model")


UNRESTRICTED = Grant()


class AccessControl:
    """The gateway's API keys. Every request is refused until `start`.

    `had_keys`: a file that exists once there have been keys. `required`: whether requests need a key while there are
    none; None: only once there have been some. `clock`: Unix seconds; `monotonic`: limits. `origins`: of the web pages
    that may use a gateway without keys.
    """

    def __init__(
        self,
        file: Path,
        had_keys: Path,
        required: bool | None = None,
        buckets: TokenBuckets | None = None,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
        origins: Sequence[str] = (),
    ) -> None:
        self._file = file
        self._had_keys = had_keys
        self._required = required
        self._buckets = buckets or TokenBuckets()
        self._clock = clock
        self._monotonic = monotonic
        self._origins = frozenset(origins)
        self._grants: dict[bytes, Grant] | None = None
        self._version: FileVersion = None
        self._error = "the API keys are not read yet"

    async def start(self) -> None:
        """Read the keys file. An invalid or lost file is logged, and every request is refused until it is restored."""
        await asyncio.to_thread(self.reload)
        if self._grants is None and not self._error:
            logger.warning("%s", self._without_keys())

    async def watch_forever(self) -> None:
        """Background: reload the file when it changes."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            await asyncio.to_thread(self.reload)

    def grant(self, headers: Headers) -> Grant:
        """Return what a request with these headers may do, and count it. Raises HttpError 401, 403, 429, 503."""
        if (grants := self._grants) is None:
            return self._grant_without_keys(headers)
        grant = grants.get(sha256(_key_in(headers)).digest())
        if grant is None:
            _refuse("this API key is unknown. It may be revoked, or belong to another gateway")
        if self._clock() >= grant.expires_at:
            _refuse(f"this API key of {grant.app} has expired. Make a new one: ratchet keys rotate {grant.app}")
        if grant.requests is not None and (seconds := grant.requests.take(1.0, self._monotonic())):
            _rate_limited(f"{grant.app} may send {grant.requests.rate:g} requests a second", seconds)
        return grant

    def charge(self, grant: Grant, size: int) -> None:
        """Count the bytes of a request's body. Raises HttpError 429."""
        if grant.bytes is not None and (seconds := grant.bytes.take(size, self._monotonic())):
            _rate_limited(f"{grant.app} may send {grant.bytes.burst:g} bytes a minute", seconds)

    def missing(self) -> list[str]:
        """The problem that keeps the gateway from serving anyone, for /readyz."""
        return [self._error] if self._grants is None and self._error else []

    def notes(self) -> list[str]:
        """Warnings about the keys, for /readyz."""
        if self._error:
            return [f"{self._error}; the keys read last stay valid"] if self._grants is not None else []
        return [self._without_keys()] if self._grants is None else []

    def reload(self) -> None:
        """Read the file if it changed. If it is invalid or gone, the keys read last stay valid."""
        if (version := _version(self._file)) == self._version and not self._error:
            return
        if version is not None:
            self._remember()
        try:
            keys = read_keys(self._file)
            if keys is None and self._has_had_keys():
                raise KeysUnreadable(
                    f"the API keys in {self._file} are gone",
                    f"Restore the file, or make new keys: {_CREATE_COMMAND}. A gateway that starts without it refuses "
                    f"every request; {_OPEN_SETTING} opens it.",
                )
        except KeysUnreadable as error:
            if error.reason != self._error:
                logger.error("%s. %s", error.reason, error.way_out)
            self._error = error.reason
            return
        if keys is not None:
            self._grants = self._grants_of(keys)
            logger.info("read %d API keys from %s", len(keys), self._file)
        self._version, self._error = version, ""

    def _remember(self) -> None:
        try:
            remember_keys(self._had_keys)
        except OSError as error:
            logger.error(
                "%s cannot be written: %s. The gateway's user must own its folder; until then a restart without the "
                "keys file may serve requests without a key",
                self._had_keys, error.strerror,
            )  # fmt: skip

    def _has_had_keys(self) -> bool:
        """Whether a missing file is a lost one: there have been keys, and no setting opens the gateway."""
        return self._grants is not None or (self._required is not False and self._had_keys.exists())

    def _without_keys(self) -> str:
        """What it means that there are no keys, for an operator."""
        if self._required:
            return f"API keys are required and there are none: every request is refused. {_CLOSED_WAY_OUT}"
        return f"no API keys: anyone who reaches the gateway may use it. {_CREATE_COMMAND}"

    def _grants_of(self, keys: Sequence[ApiKey]) -> dict[bytes, Grant]:
        grants = {}
        for key in keys:
            rate, size = key.requests_per_second, key.bytes_per_minute
            grants[bytes.fromhex(key.digest)] = Grant(
                key.app,
                frozenset(key.tasks) if key.tasks is not None else None,
                key.expires_at.timestamp() if key.expires_at else math.inf,
                self._buckets.bucket(key.app, "requests", rate, key.burst or max(1.0, rate)) if rate else None,
                self._buckets.bucket(key.app, "bytes", size / 60, size) if size else None,
                key.pass_through,
            )
        return grants

    def _grant_without_keys(self, headers: Headers) -> Grant:
        if self._error:
            raise HttpError(503, "the gateway cannot read its API keys; its log says why", "keys_unreadable")
        if self._required:
            _refuse(f"this gateway requires an API key, and none exists yet. {_CLOSED_WAY_OUT}")
        self._check_origin(headers)
        return UNRESTRICTED

    def _check_origin(self, headers: Headers) -> None:
        """Refuse what a web page sends: browsers let any page post to any address, and it needs no key here.

        Raises HttpError 403. Pages of this machine may, as programs here may, and the gateway's own at an IP address:
        a page's name can be made to point here (DNS rebinding), an address cannot.
        """
        sent = dict(headers)
        if (origin := sent.get(b"origin", b"").decode("latin-1")) == "" or self._origins & {origin, "*"}:
            return
        page = origin.rpartition("://")[2]
        is_own = page == sent.get(b"host", b"").decode("latin-1") and is_ip_address(host_name(page))
        if is_own or is_loopback(host_name(page)):
            return
        message = (
            f"web pages of {origin[:200]!r} may not use this gateway, which needs no key. "
            "Name their origin in RATCHET_GATEWAY_CORS_ORIGINS, or make API keys"
        )
        raise HttpError(403, message, "origin_not_allowed")


def _key_in(headers: Headers) -> bytes:
    """The key of a request. Raises HttpError 401.

    `api-key` wins over Authorization, which a client or proxy may use for itself. So does `x-api-key`, Anthropic's, if
    it has a key of ours: other proxies use that one.
    """
    bearer: bytes | None = None
    key: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            bearer = value
        elif name == b"api-key":
            key = value.strip()
            break
        elif name == b"x-api-key":
            key = value.strip()
    else:
        if bearer is not None and not (key is not None and key.startswith(_PREFIX)):
            scheme, _, key = bearer.partition(b" ")
            if scheme.lower() != b"bearer":
                _refuse(f"the header Authorization must be `Bearer {PREFIX}…`")
            key = key.strip()
    if key is None:
        _refuse(f"the request has no API key. Send the header `Authorization: Bearer {PREFIX}…`", "missing_api_key")
    if not key.startswith(_PREFIX) or len(key) > _MAX_KEY_BYTES:
        _refuse(f"not an API key of this gateway: they begin with {PREFIX}")
    return key


def _refuse(message: str, code: str = "invalid_api_key") -> NoReturn:
    raise HttpError(401, message, code, headers={"www-authenticate": "Bearer"})


def _rate_limited(limit: str, seconds: float) -> NoReturn:
    """Raise HttpError 429. OpenAI's clients obey `retry-after-ms`, others `retry-after`."""
    headers = {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}
    raise HttpError(
        429, f"{limit}; retry in {math.ceil(seconds * 10) / 10:g} s", "rate_limit_exceeded", headers=headers
    )


def _version(file: Path) -> FileVersion:
    """A value that changes whenever the file does; None if there is no file."""
    try:
        stat = os.stat(file)  # noqa: PTH116 - faster than Path.stat
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino
