"""Switches Unleash's flags by hand, as an operator would, and times how soon the gateway obeys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from deploy.demo.clients import FlagClient, GatewayAnswer
from deploy.demo.report.result import FlagMove
from shared.errors import RatchetError

Ask = Callable[[], Awaitable[GatewayAnswer]]


async def prove_rollback(unleash: FlagClient, ask: Ask) -> list[FlagMove]:
    """Switch rollback on and off, then primary off and on: each timed until the gateway answers accordingly.

    The flags are put back as they were, even if something fails.
    """
    moves: list[FlagMove] = []
    try:
        moves.append(await _switch(unleash, ask, "rollback", True, "rollback"))
    finally:
        moves.append(await _switch(unleash, ask, "rollback", False, "primary"))
    try:
        moves.append(await _switch(unleash, ask, "primary", False, "base"))
    finally:
        moves.append(await _switch(unleash, ask, "primary", True, "primary"))
    return moves


async def _switch(unleash: FlagClient, ask: Ask, flag: str, on: bool, expected: str) -> FlagMove:
    """Switch a flag, then ask at most four times a second until the expected arm answers."""
    move = f"{flag} {'on' if on else 'off'}"
    await unleash.switch(flag, on)
    started = time.monotonic()
    while time.monotonic() - started < 30.0:
        asked_at = time.monotonic()
        answer = await ask()
        if answer.ok and answer.variant == expected:
            return FlagMove(move, answer.variant, answer.adapter, asked_at - started)
        await asyncio.sleep(max(0.25 - (time.monotonic() - asked_at), 0.0))
    raise RatchetError(f"{move}: the gateway does not answer as {expected} after 30 s", "Is Unleash reachable?")
