"""What waits in the media folder is uploaded, whoever wrote it and whatever is away meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.recording.media_folder import MediaFolder, waiting_files
from services.gateway.shipper.media import MediaUploader
from shared.errors import DependencyUnavailable
from shared.storage.media import MediaStore
from shared.storage.media_files import MediaKey
from tests.unit.gateway.test_media import PARTS, kept
from tests.waiting import PATIENCE_SECONDS, until


class Home:
    """A home with a media folder, a gateway that writes to it, and an artifact store that may be away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "media"
        self.store = MediaStore(str(folder / "artifacts"))
        self.artifacts = folder / "artifacts"
        self.gateway = MediaFolder(self.folder, folder / "secrets", 2**30)

    async def write(self, *parts: int, user: str | None = None) -> None:
        for part in parts:
            await self.gateway.write(kept(PARTS[part], user))

    @property
    def waiting(self) -> int:
        return len(waiting_files(self.folder))

    @property
    def stored(self) -> int:
        return sum(path.is_file() for path in self.artifacts.rglob("media/*/2*/*/*"))

    def uploader(self) -> MediaUploader:
        return MediaUploader(self.folder, self.store, ShipperStatus())


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    home = Home(tmp_path)
    await home.gateway.start()
    yield home
    await home.gateway.close()


@asynccontextmanager
async def running(uploader: MediaUploader) -> AsyncIterator[ShipperStatus]:
    task = asyncio.create_task(uploader.upload_forever())
    yield uploader._status
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_what_waits_is_uploaded_as_it_is_and_deleted_here(home: Home) -> None:
    await home.write(0, 2, 3)
    files = {file.key: file.path.read_bytes() for file in waiting_files(home.folder)}
    uploader = home.uploader()
    await uploader.upload()
    assert {key: (home.artifacts / key).read_bytes() for key in files} == files
    status = uploader._status
    assert (home.waiting, status.media_uploaded, status.media_bytes, status.media_oldest) == (0, 3, 0, None)


async def test_while_the_store_is_away_media_wait_and_are_uploaded_afterwards(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> bool:
        raise DependencyUnavailable("the artifacts are away")

    await home.write(0, 1, 2, 3, 4, 5)
    oldest = waiting_files(home.folder)[0].since
    with monkeypatch.context() as patched:
        patched.setattr(MediaStore, "add", away)
        async with running(home.uploader()) as status:
            await until(lambda: status.media_error)
            assert (home.waiting, status.media_oldest, status.media_error) == (6, oldest, "the artifacts are away")
            assert status.media_bytes == sum(file.size for file in waiting_files(home.folder))
            patched.undo()
            await until(lambda: home.stored == 6 and not home.waiting)
            await until(lambda: not status.media_error)


async def test_a_file_that_the_store_refuses_does_not_stop_the_others(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    await home.write(0, 1, 2, 3, 4, 5)
    refused, add = waiting_files(home.folder)[0].key, MediaStore.add

    def refuse_one(store: MediaStore, key: str, file: bytes) -> bool:
        if key == refused:
            raise DependencyUnavailable("too large")
        return add(store, key, file)

    monkeypatch.setattr(MediaStore, "add", refuse_one)
    with pytest.raises(DependencyUnavailable, match="too large"):
        await home.uploader().upload()
    assert [file.key for file in waiting_files(home.folder)] == [refused]


async def test_media_of_a_person_who_was_forgotten_are_not_uploaded_but_deleted(home: Home) -> None:
    await home.write(0, user="ann")
    await home.write(0, user="bob")
    home.store.forget("support", {"ann": datetime.now(UTC)})
    uploader = home.uploader()
    await uploader.upload()
    assert (home.waiting, home.stored) == (0, 1)
    assert (uploader._status.media_uploaded, uploader._status.media_forgotten) == (1, 1)
    await home.write(0, user="ann")  # What they send later is kept.
    await uploader.upload()
    assert (home.waiting, home.stored) == (0, 2)


async def test_one_uploader_works_and_another_takes_over_when_it_is_gone(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.shipper.media._TAKE_OVER_SECONDS", 0.01)
    waits, works = home.uploader(), home.uploader()
    works._lock = lock = works._try_lock()
    assert lock is not None
    async with running(waits) as status:
        async with running(works) as other_status:
            await home.write(0)
            await until(lambda: home.stored == 1)
            await until(lambda: other_status.media_uploaded == 1)
        assert waits._lock is None
        lock.close()  # As the kernel does when a process dies.
        await home.write(1)
        await until(lambda: home.stored == 2)
        await until(lambda: status.media_uploaded == 1)


async def test_a_damaged_file_is_deleted_and_reported(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    await home.write(0)
    (file,) = waiting_files(home.folder)
    file.path.write_bytes(b"")  # As a power cut may leave it.
    with caplog.at_level(logging.ERROR):
        await home.uploader().upload()
    assert (home.waiting, home.stored) == (0, 0)
    assert "damaged" in caplog.text


async def test_what_was_written_again_during_its_upload_waits_for_its_own(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    await home.write(0)
    add, loop = MediaStore.add, asyncio.get_running_loop()

    def write_again(store: MediaStore, key: str, file: bytes) -> bool:
        added = add(store, key, file)
        asyncio.run_coroutine_threadsafe(home.write(0), loop).result(PATIENCE_SECONDS)
        return added

    with monkeypatch.context() as patched:
        patched.setattr(MediaStore, "add", write_again)
        await home.uploader().upload()
    assert home.waiting == 1
    await home.uploader().upload()
    assert (home.waiting, home.stored) == (0, 1)


async def test_files_that_a_dead_process_did_not_finish_are_deleted_after_an_hour(home: Home) -> None:
    await home.write(0)
    fresh, old = (home.folder / f".a.2026-01-01.b.c.{name}" for name in ("fresh", "old"))
    for path in (fresh, old):
        path.write_bytes(b"x")
    hours_ago = time.time() - timedelta(hours=2).total_seconds()
    os.utime(old, (hours_ago, hours_ago))
    await home.uploader().upload()
    assert (fresh.exists(), old.exists(), home.stored) == (True, False, 1)


async def test_an_uploader_that_stops_uploads_what_waits_first(home: Home) -> None:
    uploader = home.uploader()
    async with running(uploader):
        await until(lambda: uploader._lock is not None)
        await home.write(0, 2)
        await uploader.finish(5.0)
        assert (home.waiting, home.stored) == (0, 2)


def test_file_names_are_keys(tmp_path: Path) -> None:
    (tmp_path / "support.2026-01-02.anonymous.abc").write_bytes(b"x")
    (tmp_path / "shipper.lock").write_bytes(b"")
    (file,) = waiting_files(tmp_path)
    assert MediaKey.parse(file.key) == MediaKey("support", datetime(2026, 1, 2).date(), "anonymous", "abc")
