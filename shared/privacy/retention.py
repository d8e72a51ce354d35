"""Retention: every service that stores text of predictions drops it when it is older than its task's retention.

The lake drops whole days, and so does every copy, so that a task's text disappears everywhere at once. A reader that
starts anew brings old events back; the next round drops them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime, time, timedelta
from typing import Protocol

from schemas.base import utc_now
from schemas.tasks import TaskChanged, TaskSpec

DropBefore = Callable[[str, datetime], Awaitable[None]]
"""Drops what happened in a task before a moment. Raises DependencyUnavailable."""
RetentionDays = Callable[[TaskSpec], int | None]
"""Returns a task's retention in days; None: for ever."""
_ROUND_SECONDS = 600.0


class TaskTable(Protocol):
    """The tasks as they are now (`LatestByKey[TaskChanged]`)."""

    async def until_read(self) -> None: ...
    def __iter__(self) -> Iterator[TaskChanged]: ...


def oldest_retained_moment(days: int, now: datetime) -> datetime:
    """Return the start (UTC) of the oldest day within a retention of `days`."""
    first = (now.astimezone(UTC) - timedelta(days=days)).date()
    return datetime.combine(first, time(), UTC)


def prediction_retention_days(spec: TaskSpec) -> int | None:
    """Return the retention of a task's predictions."""
    return spec.retention_days


async def drop_expired(
    tasks: Iterable[TaskChanged], drop_before: DropBefore, retention_days: RetentionDays, now: datetime
) -> None:
    """Drop each task's expired rows once. Raises DependencyUnavailable."""
    for changed in tasks:
        if (days := retention_days(changed.spec)) is not None:
            await drop_before(changed.task, oldest_retained_moment(days, now))


async def drop_expired_forever(
    tasks: TaskTable,
    drop_before: DropBefore,
    retention_days: RetentionDays = prediction_retention_days,
) -> None:
    """Drop expired rows every ten minutes, as a background task.

    Not before the tasks are read to their end: an older, shorter retention of a task would drop what is to be kept.
    """
    await tasks.until_read()
    while True:
        await drop_expired(tasks, drop_before, retention_days, utc_now())
        await asyncio.sleep(_ROUND_SECONDS)
