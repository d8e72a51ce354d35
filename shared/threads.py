"""Blocking work in a thread, whose end a cancellation waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger(__name__)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in a thread, like `asyncio.to_thread`, but let a cancellation wait until the thread has ended.

    For background work: a service cancels it when it stops, and nothing can stop a thread. Abandoned, the thread would
    still write to a store after its service has stopped.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if error := work.exception():
            logger.warning("background thread failed while its service was stopping: %r", error)
        raise
