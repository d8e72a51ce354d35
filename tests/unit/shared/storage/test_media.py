"""Kept media are stored once, read again, and deleted for people and by age. In an object store: test_storage_in_s3."""

from __future__ import annotations

import base64
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.conversation import Media
from shared.errors import DependencyUnavailable
from shared.privacy.encryption import Cipher
from shared.storage.media import MediaMissing, MediaReader, MediaStore
from shared.storage.media_files import ANONYMOUS, pack, sent_at

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
AROUND = b'{"part":{"type":"input_audio","input_audio":{"data":null,"format":"wav"}},"path":["input_audio","data"]}'
CIPHER = Cipher(b"k" * 32)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


class Store:
    """A store in a folder, and the names of the files that it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.media = MediaStore(str(folder))

    def add(self, subject: str, at: datetime, name: str = "n", task: str = "support") -> bool:
        file = pack(AROUND, base64.b64encode(name.encode()).decode(), at.timestamp(), CIPHER)
        return self.media.add(key(subject, at, name, task), file)

    @property
    def keys(self) -> list[str]:
        files = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return sorted(file for file in files if "/forgotten/" not in file)


def key(subject: str, at: datetime, name: str = "n", task: str = "support") -> str:
    return f"media/{task}/{at.date()}/{subject}/{name}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


class NoBucket:
    """An object store that answers 404 to everything, which obstore raises as it raises a missing file."""

    def __getattr__(self, name: str) -> Any:
        def answer(*args: Any, **options: Any) -> Any:
            raise FileNotFoundError("404 Not Found: NoSuchBucket")

        return answer


def test_a_store_without_its_bucket_is_away_and_no_file_that_is_gone() -> None:
    """An upload took it for another shipper's work, and an erasure for a bug."""
    media = MediaStore("s3://misspelt")
    media.__dict__["_store"] = NoBucket()
    file = pack(AROUND, base64.b64encode(b"n").decode(), NOON.timestamp(), CIPHER)
    for subject in ("ann", ANONYMOUS):
        with pytest.raises(DependencyUnavailable, match="404"):
            media.add(key(subject, NOON), file)
    with pytest.raises(DependencyUnavailable, match="404"):
        media.forget("support", {"ann": NOON})


def test_a_file_is_read_as_it_was_sent(store: Store, tmp_path: Path) -> None:
    assert store.add("ann", NOON)
    reader, media = MediaReader(store.media, CIPHER), Media(kind="audio", hash="h", key=key("ann", NOON))
    assert reader.file(media.key or "").content == b"n"
    assert reader.part(media) == {"type": "input_audio", "input_audio": {"data": "bg==", "format": "wav"}}
    with pytest.raises(MediaMissing):
        reader.part(media.model_copy(update={"key": key("bob", NOON)}))
    with pytest.raises(ValueError, match="was not kept"):
        reader.part(media.model_copy(update={"key": None}))
    assert (tmp_path / "artifacts").stat().st_mode & 0o777 == 0o755
    assert (store.folder / key("ann", NOON)).stat().st_mode & 0o777 == 0o600


def test_the_same_content_of_a_person_and_day_is_stored_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.add("ann", NOON)

    def unexpected(*_: Any) -> None:
        raise AssertionError("uploaded again")

    monkeypatch.setattr(MediaStore, "_put", unexpected)
    assert store.add("ann", NOON + MINUTE)
    assert store.keys == [key("ann", NOON)]


def test_what_a_person_sent_until_their_request_is_deleted_and_nothing_else(store: Store) -> None:
    for subject in ("ann", "bob", "anonymous"):
        for at in (NOON - 40 * DAY, NOON, NOON + MINUTE, NOON + DAY):
            store.add(subject, at, f"{at:%H%M}")
    store.add("ann", NOON, "1200", "another-task")
    store.media.forget("support", {"ann": NOON})
    kept = [key(subject, at, f"{at:%H%M}") for subject in ("bob", "anonymous")
            for at in (NOON - 40 * DAY, NOON, NOON + MINUTE, NOON + DAY)]  # fmt: skip
    kept += [
        key("ann", NOON + MINUTE, "1201"),
        key("ann", NOON + DAY, "1200"),
        key("ann", NOON, "1200", "another-task"),
    ]
    assert store.keys == sorted(kept)


def test_what_a_forgotten_person_sent_before_is_not_stored_later(store: Store) -> None:
    store.media.forget("support", {"ann": NOON})
    assert not store.add("ann", NOON - 3 * DAY)
    assert not store.add("ann", NOON)
    assert store.add("ann", NOON + MINUTE, "later")
    assert store.keys == [key("ann", NOON + MINUTE, "later")]


def test_a_person_who_is_forgotten_while_their_file_is_uploaded_is_forgotten(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = MediaStore._put

    def forget_first(self: MediaStore, *args: Any) -> None:
        MediaStore(str(store.folder)).forget("support", {"ann": NOON})  # It finds nothing yet.
        put(self, *args)

    monkeypatch.setattr(MediaStore, "_put", forget_first)
    assert not store.add("ann", NOON)
    assert store.keys == []


def test_who_is_forgotten_twice_is_forgotten_until_the_later_time(store: Store) -> None:
    store.media.forget("support", {"ann": NOON})
    store.media.forget("support", {"ann": NOON - DAY})  # A request that is delivered again.
    assert not store.add("ann", NOON)
    store.media.forget("support", {"ann": NOON + DAY})
    assert not store.add("ann", NOON + DAY)


def test_what_is_sent_again_after_the_request_has_the_later_time(store: Store) -> None:
    store.add("ann", NOON)
    store.media.forget("support", {"ann": NOON - MINUTE})
    assert store.add("ann", NOON + MINUTE)
    assert sent_at((store.folder / key("ann", NOON)).read_bytes()) == NOON + MINUTE
    store.media.forget("support", {"ann": NOON})
    assert store.keys == [key("ann", NOON)]


def test_days_before_the_retention_are_deleted(store: Store) -> None:
    for days in range(5):
        store.add("ann", NOON - days * DAY)
        store.add("anonymous", NOON - days * DAY, task="another-task")
    store.media.forget("support", {"bob": NOON - 10 * DAY})
    assert store.media.delete_before("support", date(2026, 3, 4)) == 3
    assert store.media.delete_before("support", date(2026, 3, 4)) == 0
    assert [k for k in store.keys if "/support/" in k] == [key("ann", NOON - DAY), key("ann", NOON)]
    assert len(store.keys) == 2 + 5
    assert not store.add("bob", NOON - 10 * DAY)  # Who was forgotten stays forgotten.


def test_an_empty_store_has_nothing_to_delete(store: Store) -> None:
    store.media.forget("support", {"ann": NOON})
    assert store.media.delete_before("support", NOON.date()) == 0


def test_a_store_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = MediaStore(str(tmp_path / "file"))
    with pytest.raises(DependencyUnavailable):
        store.add(key("ann", NOON), pack(AROUND, "QUJD", NOON.timestamp(), CIPHER))
    with pytest.raises(DependencyUnavailable):
        store.forget("support", {"ann": NOON})
