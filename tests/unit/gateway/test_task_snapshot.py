from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.gateway.tasks.snapshot import TaskSnapshot
from shared.kafka.latest_by_key import LatestByKey
from tests.waiting import PATIENCE_SECONDS


def changed(name: str, prompt: str = "") -> TaskChanged:
    spec = TaskSpec(name=name, kind=TaskKind.GENERATION, system_prompt=prompt)
    return TaskChanged(task=name, task_revision=spec.revision, spec=spec)


def table() -> LatestByKey[TaskChanged]:
    return LatestByKey("tasks.changed.v1")


@pytest.fixture
async def restored(tmp_path: Path) -> tuple[LatestByKey[TaskChanged], list[TaskChanged]]:
    """A table with the second of three versions of a task, from a snapshot, and the three."""
    path, second = tmp_path / "tasks.json", changed("support", "Second")
    hour = timedelta(hours=1)
    first = changed("support", "First").model_copy(update={"occurred_at": second.occurred_at - hour})
    third = changed("support", "Third").model_copy(update={"occurred_at": second.occurred_at + hour})
    path.write_bytes(b"[" + second.model_dump_json().encode() + b"]")
    tasks = table()
    await TaskSnapshot(tasks, path).load()
    return tasks, [first, second, third]


async def until_written(path: Path, word: bytes) -> None:
    def written() -> bool:
        return path.exists() and word in path.read_bytes()

    async with asyncio.timeout(PATIENCE_SECONDS):
        while not written():
            await asyncio.sleep(0.02)


async def test_a_snapshot_restores_the_tasks_without_a_broker(tmp_path: Path) -> None:
    path, tasks = tmp_path / "gateway" / "tasks.json", table()
    syncing = asyncio.create_task(TaskSnapshot(tasks, path).sync_forever())
    try:
        await tasks.put("support", changed("support", "Älter"))
        await until_written(path, "Älter".encode())
        await tasks.put("haiku", changed("haiku"))
        await tasks.put("support", change := changed("support", "Neu"))
        await until_written(path, b"Neu")
    finally:
        syncing.cancel()
    assert path.stat().st_mode & 0o077 == 0
    later = table()
    await TaskSnapshot(later, path).load()
    assert later.get("support") == change
    assert {change.task for change in later} == {"support", "haiku"}


async def test_while_the_topic_is_read_from_its_start_no_older_version_of_a_task_serves(
    restored: tuple[LatestByKey[TaskChanged], list[TaskChanged]],
) -> None:
    tasks, (first, second, third) = restored
    served = []
    for version in (first, second, third):
        await tasks.put("support", version)
        served.append(tasks.get("support"))
    assert served == [second, second, third]
    await tasks.put("support", first)
    assert tasks.get("support") == first, "what follows in the topic is newer, whatever the clock said"


async def test_once_the_topic_is_read_to_its_end_its_last_version_serves_though_the_snapshot_was_newer(
    restored: tuple[LatestByKey[TaskChanged], list[TaskChanged]],
) -> None:
    tasks, (first, second, _) = restored
    await tasks.put("support", first)
    assert tasks.get("support") == second
    await tasks.read_to({})
    assert tasks.get("support") == first


async def test_a_missing_or_broken_file_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    for content in (None, b"", b'[{"task": "supp', b"{}", b"[]", b"[1]", b"3", b'[{"task": "x"}]', b"\xff"):
        if content is not None:
            path.write_bytes(content)
        tasks = table()
        await TaskSnapshot(tasks, path).load()
        assert len(tasks) == 0


async def test_unchanged_tasks_are_not_written_again(tmp_path: Path) -> None:
    path, tasks = tmp_path / "tasks.json", table()
    await tasks.put("haiku", changed("haiku"))
    snapshot = TaskSnapshot(tasks, path)
    syncing = asyncio.create_task(snapshot.sync_forever())
    try:
        await until_written(path, b"haiku")
        path.unlink()
        await asyncio.sleep(1.2)
        assert not path.exists()
    finally:
        syncing.cancel()
