"""How long text is kept, by task: every service that has a copy of what was asked or answered drops it when it is old.

The lake drops whole days, and so do the copies: what a task keeps is the same everywhere. A replay may bring old events
back; the next round drops them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, time, timedelta

from schemas.base import utc_now
from schemas.tasks import TaskChanged, TaskSpec

Expire = Callable[[str, datetime], Awaitable[None]]
"""Drop what happened in a task before a moment. Raises DependencyUnavailable."""
Days = Callable[[TaskSpec], int | None]
"""How many days a task keeps it; None: for ever."""
_PAUSE_SECONDS = 600.0


def kept_from(days: int, now: datetime) -> datetime:
    """The start (UTC) of the oldest day that is kept."""
    try:
        first = (now.astimezone(UTC) - timedelta(days=days)).date()
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
    return datetime.combine(first, time(), UTC)


def of_predictions(spec: TaskSpec) -> int | None:
    """How long the task keeps predictions."""
    return spec.retention_days


async def expire(tasks: Iterable[TaskChanged], drop: Expire, days: Days, now: datetime) -> None:
    """One round over the tasks. Raises DependencyUnavailable."""
    for changed in tasks:
        if (kept := days(changed.spec)) is not None:
            await drop(changed.task, kept_from(kept, now))


async def expire_forever(
    tasks: Iterable[TaskChanged],
    drop: Expire,
    days: Callable[[TaskSpec], int | None] = lambda spec: spec.retention_days,
) -> None:
    """Background: a round every ten minutes."""
    while True:
        await expire(tasks, drop, days, utc_now())
        await asyncio.sleep(_PAUSE_SECONDS)
