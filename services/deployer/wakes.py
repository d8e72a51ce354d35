"""What has a task ticked before its next regular tick: news that may change a decision."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class _Signals:
    noted: asyncio.Event = field(default_factory=asyncio.Event)
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class Wakes:
    """News of each task. However much comes before its worker looks, the task is ticked once."""

    def __init__(self) -> None:
        self._signals: defaultdict[str, _Signals] = defaultdict(_Signals)

    def note(self, task: str) -> None:
        """Something is new, which can wait for some seconds."""
        self._signals[task].noted.set()

    def wake(self, task: str) -> None:
        """Something is new, which cannot wait."""
        self._signals[task].noted.set()
        self._signals[task].woken.set()

    async def wait(self, task: str, shortest: float, longest: float) -> None:
        """Return when the task is woken, after `shortest` seconds if something was noted, after `longest` anyway."""
        signals = self._signals[task]
        if not await _is_set(signals.woken, shortest):
            await _is_set(signals.noted, longest - shortest)
        signals.noted.clear()
        signals.woken.clear()


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event for so long; return whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
