"""Ending asyncio tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

ENDINGS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
"""What ends a task on purpose. Whatever else is no Exception is a panic of Rust, and an error like others."""


async def end_tasks(tasks: Iterable[asyncio.Task[Any]], again_seconds: float = 2.0) -> None:
    """Cancel tasks, and wait until all have ended; what they raise is dropped.

    One that goes on is cancelled again and again. A cancellation is lost where what the task waits for fails just then,
    and raises its failure instead: a query of a database that goes away, say. Work that retries what failed then
    retries, as if nobody had asked it to end.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        ended, pending = await asyncio.wait(pending, timeout=again_seconds)
        for task in ended:
            if not task.cancelled():
                task.exception()  # Else it is logged as one that nobody has seen.
