"""Unleash's flags moved by hand, as an operator would on its page: how long until the gateway obeys?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

from deploy.demo.clients import Asked
from shared.errors import RatchetError
from shared.settings import Settings

LIMIT_SECONDS = 3.0
_FEATURES = "/api/admin/projects/default/features"
Ask = Callable[[], Awaitable[Asked]]


@dataclass(frozen=True)
class Switched:
    """One move: what was done, who answered then, and after how long."""

    move: str
    variant: str
    adapter: str
    seconds: float

    @property
    def in_time(self) -> bool:
        return self.seconds <= LIMIT_SECONDS


class Flags:
    """Switches a task's flags in the development environment."""

    def __init__(self, http: httpx.AsyncClient, settings: Settings, task: str) -> None:
        self._http = http
        self._url = settings.unleash.rstrip("/") + _FEATURES
        self._headers = {"authorization": settings.unleash_admin_token}
        self._task = task

    async def turn(self, flag: str, on: bool) -> None:
        """Turn `ratchet.<task>.<flag>` on or off. Raises RatchetError if Unleash refuses."""
        url = f"{self._url}/ratchet.{self._task}.{flag}/environments/development/{'on' if on else 'off'}"
        response = await self._http.post(url, headers=self._headers)
        if not response.is_success:
            raise RatchetError(
                f"Unleash refused to turn {flag} {'on' if on else 'off'}: {response.status_code} {response.text[:200]}",
                "Is RATCHET_UNLEASH_ADMIN_TOKEN an admin token? Was the task ever promoted?",
            )


async def prove_rollback(flags: Flags, ask: Ask) -> list[Switched]:
    """Rollback on, off; primary off, on: each timed until the gateway answers accordingly.

    The flags are left as they were found, even where something fails.
    """
    moves: list[Switched] = []
    try:
        moves.append(await _switch(flags, ask, "rollback", True, "rollback"))
    finally:
        moves.append(await _switch(flags, ask, "rollback", False, "primary"))
    try:
        moves.append(await _switch(flags, ask, "primary", False, "base"))
    finally:
        moves.append(await _switch(flags, ask, "primary", True, "primary"))
    return moves


async def _switch(flags: Flags, ask: Ask, flag: str, on: bool, expected: str) -> Switched:
    """Move a flag, then ask at most four times a second until the arm is the expected one."""
    move = f"{flag} {'on' if on else 'off'}"
    await flags.turn(flag, on)
    started = time.monotonic()
    while time.monotonic() - started < 30.0:
        sent = time.monotonic()
        asked = await ask()
        if asked.ok and asked.variant == expected:
            return Switched(move, asked.variant, asked.adapter, sent - started)
        await asyncio.sleep(max(0.25 - (time.monotonic() - sent), 0.0))
    raise RatchetError(f"{move}: the gateway still does not answer as {expected} after 30 s", "Is Unleash reachable?")
