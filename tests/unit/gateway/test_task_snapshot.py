from __future__ import annotations

import asyncio
from pathlib import Path

from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.gateway.tasks.snapshot import TaskSnapshot
from shared.kafka.latest_by_key import LatestByKey


def changed(name: str, prompt: str = "") -> TaskChanged:
    spec = TaskSpec(name=name, kind=TaskKind.GENERATION, system_prompt=prompt)
    return TaskChanged(task=name, task_revision=spec.revision, spec=spec)


def table() -> LatestByKey[TaskChanged]:
    return LatestByKey("tasks.changed.v1")


async def until_written(path: Path, word: bytes) -> None:
    def written() -> bool:
        return path.exists() and word in path.read_bytes()

    async with asyncio.timeout(5):
        while not written():
            await asyncio.sleep(0.02)


async def test_the_tasks_known_last_are_known_at_a_start_without_a_broker(tmp_path: Path) -> None:
    path, known = tmp_path / "gateway" / "tasks.json", table()
    keeping = asyncio.create_task(TaskSnapshot(known, path).sync_forever())
    try:
        await known.put("support", changed("support", "Älter"))
        await until_written(path, "Älter".encode())
        await known.put("haiku", changed("haiku"))
        await known.put("support", change := changed("support", "Neu"))
        await until_written(path, b"Neu")
    finally:
        keeping.cancel()
    assert path.stat().st_mode & 0o077 == 0
    later = table()
    await TaskSnapshot(later, path).load()
    assert later.get("support") == change
    assert {one.task for one in later} == {"support", "haiku"}


async def test_a_file_that_is_missing_or_broken_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    for content in (None, b"", b'[{"task": "supp', b"{}", b"[]", b"[1]", b"3", b'[{"task": "x"}]', b"\xff"):
        if content is not None:
            path.write_bytes(content)
        known = table()
        await TaskSnapshot(known, path).load()
        assert len(known) == 0


async def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    path, known = tmp_path / "tasks.json", table()
    await known.put("haiku", changed("haiku"))
    one = TaskSnapshot(known, path)
    keeping = asyncio.create_task(one.sync_forever())
    try:
        await until_written(path, b"haiku")
        path.unlink()
        await asyncio.sleep(1.2)
        assert not path.exists()
    finally:
        keeping.cancel()
