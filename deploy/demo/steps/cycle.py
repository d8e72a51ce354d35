"""Follows a cycle on the console: which steps are done, how far the running one is, how the cycle ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from deploy.demo.clients import ConsoleClient
from deploy.demo.errors import CycleStepFailed, StepTimeout

POLL_SECONDS = 0.5
_SETTLING_SECONDS = 30.0
"""How long after a cycle's end the console may show what ended it: it reads topics side by side."""


@dataclass(frozen=True)
class CyclePage:
    """The console's page of a cycle at one moment."""

    steps: tuple[dict[str, Any], ...]
    progress: dict[str, Any] | None

    @classmethod
    def of(cls, page: dict[str, Any] | None) -> CyclePage:
        page = page or {}
        return cls(tuple(page.get("steps") or ()), page.get("progress"))

    def events(self, topic: str) -> list[dict[str, Any]]:
        """Return all events of a topic, named without its version, oldest first."""
        return [step["event"] for step in self.steps if step["topic"].rsplit(".v", 1)[0] == topic]

    def last(self, topic: str) -> dict[str, Any] | None:
        events = self.events(topic)
        return events[-1] if events else None

    @property
    def shows_what_ended_it(self) -> bool:
        """True if the event that ended the cycle is there, too, or an operator did."""
        ended_by = (self.last("cycles.finished") or {}).get("ended_by")
        return ended_by is None or any(step["event"]["event_id"] == ended_by for step in self.steps)


OnPoll = Callable[[CyclePage], object]
"""Called at every poll. A changed return value is a sign of life."""
EventFinder = Callable[[CyclePage], dict[str, Any] | None]


def event_of(topic: str) -> EventFinder:
    """Find the cycle's event of a topic."""
    return lambda page: page.last(topic)


def stage_in(*stages: str) -> EventFinder:
    """Find the first change of the rollout to one of these stages."""
    return lambda page: next((e for e in page.events("rollouts.changed") if e["stage"] in stages), None)


async def follow(
    console: ConsoleClient, cycle_id: str, find: EventFinder, seconds: float, on_poll: OnPoll, timeout: StepTimeout
) -> tuple[dict[str, Any] | None, CyclePage]:
    """Wait until `find` finds its event. Returns None for it if the cycle ended without.

    Raises CycleStepFailed when a service gives up its step, `timeout` after `seconds` in which nothing changed (a slow
    machine is not a stalled step), and what `on_poll` raises.
    """
    last_state: object = None
    deadline = time.monotonic() + seconds
    ended_at: float | None = None
    while True:
        page = CyclePage.of(await console.cycle(cycle_id))
        if event := find(page):
            return event, page
        failed = page.last("steps.failed")
        if failed is not None:
            raise CycleStepFailed(failed)
        if page.last("cycles.finished"):
            ended_at = ended_at or time.monotonic()
            if page.shows_what_ended_it or time.monotonic() > ended_at + _SETTLING_SECONDS:
                return None, page
        if (state := (page, on_poll(page))) != last_state:
            last_state, deadline = state, time.monotonic() + seconds
        if time.monotonic() > deadline:
            raise timeout
        await asyncio.sleep(POLL_SECONDS)


async def poll(check: Callable[[], Awaitable[bool]], seconds: float, timeout: StepTimeout) -> None:
    """Wait until `check` returns True. Raises `timeout` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not await check():
        if time.monotonic() > deadline:
            raise timeout
        await asyncio.sleep(POLL_SECONDS)
