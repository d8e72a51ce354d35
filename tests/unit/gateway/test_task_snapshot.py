from __future__ import annotations

import asyncio
from pathlib import Path

from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.gateway.tasks.snapshot import TaskSnapshot
from shared.kafka.latest_by_key import LatestByKey
from tests.waiting import PATIENCE_SECONDS


def changed(name: str, prompt: str = "") -> TaskChanged:
    spec = TaskSpec(name=name, kind=TaskKind.GENERATION, system_prompt=prompt)
    return TaskChanged(task=name, task_revision=spec.revision, spec=spec)


def table() -> LatestByKey[TaskChanged]:
    return LatestByKey("tasks.changed.v1")


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
