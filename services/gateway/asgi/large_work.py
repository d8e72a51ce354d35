"""Work on large bodies, off the event loop: while it runs, the loop answers other requests.

A thread helps where the work is many small steps, between which the GIL changes hands, or hashing, which drops it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

LARGE_BYTES = 256 * 1024
"""The work on a smaller body takes less time than a thread would cost."""

T = TypeVar("T")
P = ParamSpec("P")


class LargeWork:
    """Runs work on one large body at a time: each more would take a share of the GIL from the event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def run(self, size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns, or raise what it raises; in a thread if its body has many bytes.

        Cancelled, it still waits for the thread: only then is what the work holds free, and no longer in flight.
        """
        if size <= LARGE_BYTES:
            return function(*args, **kwargs)
        async with self._lock:
            running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.wait([running])
                raise
