"""When a canary was decided, computed from what its users saw, and when its flag and the gateway followed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from schemas.task_settings import RolloutSettings
from services.deployer.flags import flag_name
from services.deployer.statistics.canary import Arms, CanaryCounts, Latencies, canary_failure
from services.deployer.statistics.guards import Guard
from tests.e2e.rollouts.engine import Kind
from tests.e2e.rollouts.live import Live
from tests.e2e.rollouts.load import Load

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Rollback:
    """A canary that its guards ended: seconds from the deciding answer until its flag was off, and until the gateway
    served the one who was in it by the primary again; and the requests without an answer that it did not break."""

    flag: float
    gateway: float
    dropped: int


def deciding_count(kind: Kind, settings: RolloutSettings) -> int:
    """Return the number of the canary's users with a bad answer, nobody else having one, at which its guards end it."""
    return next(n for n in range(1, 1_000) if canary_failure(_counts(kind, n, settings), settings))


def _counts(kind: Kind, bad: int, settings: RolloutSettings) -> CanaryCounts:
    arms = [Arms(settings.canary_steps[0], bad, bad)]
    if kind is Kind.SLOW:
        return CanaryCounts(bad, arms={Guard.LATENCY: arms}, latencies=Latencies(bad, bad, 1.0))
    return CanaryCounts(bad, bad, arms={Guard.ERRORS: arms})


def decided_at(load: Load, kind: Kind, candidate: str, settings: RolloutSettings) -> float:
    """Return when the deciding answer had ended, by the clock of the load."""
    ended = sorted(a.ended for a in load.asked if a.is_of(candidate) and (a.error or kind is Kind.SLOW))
    return ended[deciding_count(kind, settings) - 1]


async def flag_off(live: Live, task: str) -> float:
    """Wait until the canary's flag is off in Unleash, and return when it was."""
    while (state := await live.flags.read(flag_name(task, "canary"))) is not None and state.enabled:
        await asyncio.sleep(POLL_SECONDS)
    return time.monotonic()


async def out_of_canary(load: Load, user: str, candidate: str) -> float:
    """Ask as a user of the canary, whole answers, until another arm answers; return when that was asked."""
    while True:
        asked = await load.ask(user, 0, stream=False)
        if not asked.error and not asked.is_of(candidate):
            return asked.began
        await asyncio.sleep(POLL_SECONDS)
