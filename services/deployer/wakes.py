"""Wakes the worker of a task before its next tick is due."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict


class Wakes:
    """A task that is woken twice before its worker looks is ticked once."""

    def __init__(self) -> None:
        self._events: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def wake(self, task: str) -> None:
        self._events[task].set()

    async def wait(self, task: str, seconds: float) -> None:
        """Return when the task is woken, after `seconds` at the latest."""
        event = self._events[task]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
        event.clear()
