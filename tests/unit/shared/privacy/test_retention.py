"""Retention drops whole days, per task."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest

from schemas.task_settings import MAX_DAYS
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.retention import (
    drop_expired,
    drop_expired_forever,
    oldest_retained_moment,
    prediction_retention_days,
)
from shared.tasks import end_tasks
from tests.waiting import until

NOW = datetime(2026, 11, 20, 15, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("days", "now", "start"),
    [
        (1, NOW, datetime(2026, 11, 19, tzinfo=UTC)),
        (30, NOW, datetime(2026, 10, 21, tzinfo=UTC)),
        (1, datetime(2026, 11, 20, 1, tzinfo=timezone(timedelta(hours=5))), datetime(2026, 11, 18, tzinfo=UTC)),
        (MAX_DAYS, NOW, datetime(1753, 2, 4, tzinfo=UTC)),
    ],
)
def test_whole_days_in_utc_are_retained(days: int, now: datetime, start: datetime) -> None:
    assert oldest_retained_moment(days, now) == start


async def test_a_task_without_a_retention_drops_nothing() -> None:
    dropped: list[tuple[str, datetime]] = []

    async def drop(task: str, before: datetime) -> None:
        dropped.append((task, before))

    spec = TaskSpec(name="desk", kind=TaskKind.GENERATION, system_prompt="p")
    short = spec.model_copy(update={"name": "short", "retention_days": 7})
    tasks = [TaskChanged(task=s.name, task_revision=s.revision, spec=s) for s in (spec, short)]
    await drop_expired(tasks, drop, prediction_retention_days, NOW)
    assert dropped == [("short", datetime(2026, 11, 13, tzinfo=UTC))]


async def test_nothing_is_dropped_by_a_retention_that_may_have_a_newer_one_behind_it() -> None:
    dropped: list[str] = []

    async def drop(task: str, before: datetime) -> None:
        dropped.append(task)

    tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    spec = TaskSpec(name="desk", kind=TaskKind.GENERATION, system_prompt="p")
    for days, name in ((7, "desk"), (7, "other"), (None, "desk")):
        changed = spec.model_copy(update={"name": name, "retention_days": days})
        await tasks.put(name, TaskChanged(task=name, task_revision=changed.revision, spec=changed))
        if days is not None and name == "desk":
            dropping = asyncio.create_task(drop_expired_forever(tasks, drop))
            await asyncio.sleep(0.05)
    assert dropped == []
    await tasks.read_to({})
    await until(lambda: dropped)
    assert dropped == ["other"]
    await end_tasks([dropping])
