"""Blocking work in a thread that is never left behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger(__name__)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it in a thread. As `asyncio.to_thread`, but a cancellation waits until the thread has come to its end.

    For background work: a service that stops cancels it, and nothing can stop a thread. Left behind, it would still
    write to a store that its service, stopped, is believed to have let go.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if error := work.exception():
            logger.warning("failed while it was being stopped: %r", error)
        raise
