"""Artifacts are complete or absent, on a disk. Those in an object store: tests/integration/test_storage_in_s3.py."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from shared.errors import DependencyUnavailable, StepImpossible
from shared.storage.artifacts import ArtifactNotFound, ArtifactStore


def folder(path: Path, content: str = "x") -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "data.txt").write_text(content)
    (path / "manifest.json").write_text("{}")
    return path


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), cache=tmp_path / "cache")


def test_a_published_folder_is_fetched_unchanged(store: ArtifactStore, tmp_path: Path) -> None:
    address = store.publish(folder(tmp_path / "a"), "datasets", "d-1")
    assert (store.fetch(address) / "inner" / "data.txt").read_text() == "x"
    assert address == store.address("datasets", "d-1")


def test_publishing_is_idempotent(store: ArtifactStore, tmp_path: Path) -> None:
    address = store.publish(folder(tmp_path / "a", "first"), "datasets", "d-1")
    store.publish(folder(tmp_path / "b", "second"), "datasets", "d-1")
    assert (store.fetch(address) / "inner" / "data.txt").read_text() == "first"


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError("no space left"), DependencyUnavailable)]
)
def test_what_a_killed_process_or_a_full_disk_left_of_a_folder_is_gone_once_it_is_published(
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
) -> None:
    """A full disk is waited for, as a server that is away is: an adapter that took hours to train was lost."""
    copytree = shutil.copytree

    def interrupted(source: Path, target: Path, *positional: Any, **options: Any) -> None:
        copytree(source, target, *positional, **options)
        raise error

    with monkeypatch.context() as patched, pytest.raises(raised):
        patched.setattr(shutil, "copytree", interrupted)
        store.publish(folder(tmp_path / "a"), "datasets", "d-1")
    store.publish(folder(tmp_path / "b"), "datasets", "d-10")
    store.publish(tmp_path / "a", "datasets", "d-1")
    assert store.names("datasets") == ["d-1", "d-10"]


def test_what_was_left_of_a_folder_that_is_never_published_again_is_gone_after_a_day(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that starts over after an erasure makes a version of another name."""
    store.publish(folder(tmp_path / "a"), "datasets", "d-1")
    kind = Path(store.address("datasets", "d-1")).parent
    (old, new) = (kind / ".d-2.abc", kind / ".d-3.abc")
    for path in (old, new):
        path.mkdir()
    os.utime(new, (time.time() - 90_000, time.time() - 90_000))  # As a copy of an old folder has it.
    new_at = new.stat().st_ctime
    store.publish(folder(tmp_path / "b"), "datasets", "d-4")
    assert (old.exists(), new.exists()) == (True, True), "another process may be writing to them"
    monkeypatch.setattr(time, "time", lambda: new_at + 90_000)
    store.publish(folder(tmp_path / "c"), "datasets", "d-5")
    assert (old.exists(), new.exists()) == (False, False)


def test_what_a_killed_download_left_is_gone_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has people's rows, under a name that nobody looks for."""

    class Objects:
        def head(self, path: str) -> None: ...

        def list(self) -> list[list[dict[str, str]]]:
            return [[{"path": "manifest.json"}]]

        def get(self, path: str) -> list[bytes]:
            return [b"{}"]

    monkeypatch.setattr("shared.storage.artifacts._object_store", lambda address: contextlib.nullcontext(Objects()))
    store = ArtifactStore("s3://bucket", cache=tmp_path / "cache")
    left = tmp_path / "cache" / "bucket" / "datasets" / ".killed"
    left.mkdir(parents=True)
    store.fetch("s3://bucket/datasets/d-1")
    assert left.exists(), "another process may be writing to it"
    at = left.stat().st_ctime
    monkeypatch.setattr(time, "time", lambda: at + 90_000)
    store.fetch("s3://bucket/datasets/d-2")
    assert sorted(path.name for path in left.parent.iterdir()) == ["d-1", "d-2"]


class Bucket:
    """An object store: its objects, in the order in which they were put."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.objects: dict[str, bytes] = {}
        monkeypatch.setattr("shared.storage.artifacts._object_store", lambda address: contextlib.nullcontext(self))

    def head(self, path: str) -> None:
        if path not in self.objects:
            raise FileNotFoundError(path)

    def put(self, path: str, file: Path) -> None:
        self.objects[path] = file.read_bytes()

    def get(self, path: str) -> list[bytes]:
        return [self.objects[path]]

    def list(self) -> list[list[dict[str, str]]]:
        return [[{"path": path} for path in self.objects]]


def test_a_folder_in_an_object_store_is_missing_until_all_of_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, store = Bucket(monkeypatch), ArtifactStore("s3://bucket", cache=tmp_path / "cache")
    (folder(tmp_path / "a") / "train.jsonl").touch()
    address = store.publish(tmp_path / "a", "datasets", "d-1")
    name, manifest = bucket.objects.popitem()
    with pytest.raises(ArtifactNotFound):
        store.fetch(address)
    bucket.objects[name] = manifest
    assert sorted(path.name for path in store.fetch(address).iterdir()) == ["inner", "manifest.json", "train.jsonl"]


def test_a_download_that_broke_off_is_not_taken_for_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, store = Bucket(monkeypatch), ArtifactStore("s3://bucket", cache=tmp_path / "cache")
    address = store.publish(folder(tmp_path / "a"), "datasets", "d-1")

    def interrupted(path: str) -> list[bytes]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(bucket, "get", interrupted)
        store.fetch(address)
    assert (store.fetch(address) / "inner" / "data.txt").read_text() == "x"


def test_a_folder_is_on_the_disk_before_it_has_its_name_and_its_name_before_anybody_hears_of_it(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the machine stopped after the rename, the files could be empty, and nobody would publish them again."""
    happened: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        happened.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        happened.append(f"to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    store.publish(folder(tmp_path / "a"), "datasets", "d-1")
    named = happened.index("to d-1")
    assert {"data.txt", "inner", "manifest.json"} < set(happened[:named])
    assert happened[named + 1 :] == ["datasets"]


@pytest.mark.parametrize("place", ["../elsewhere", "adapters/../../elsewhere", ""])
def test_an_address_outside_of_the_store_is_never_read(store: ArtifactStore, tmp_path: Path, place: str) -> None:
    """An event names it: `../../x` was read, and `s3://../..` asked for."""
    folder(tmp_path / "elsewhere")
    store.publish(folder(tmp_path / "a"), "adapters", "a")
    with pytest.raises(ArtifactNotFound, match="is outside of"):
        store.fetch(store.address(place, "").rstrip("/") if place else str(tmp_path / "artifacts"))
    others = (str(tmp_path / "elsewhere"), f"{tmp_path}/artifacts-2/adapters/a", "s3://bucket/adapters/a", "s3://../..")
    for other in others:
        with pytest.raises(ArtifactNotFound, match="is outside of"):
            store.fetch(other)


def test_a_local_address_may_be_written_as_a_url(store: ArtifactStore, tmp_path: Path) -> None:
    address = store.publish(folder(tmp_path / "a"), "adapters", "a")
    assert store.fetch(f"file://{address}") == Path(address)
    assert ArtifactStore(f"file://{tmp_path}/artifacts", tmp_path / "cache").fetch(address) == Path(address)


def test_a_missing_artifact_is_unavailable(store: ArtifactStore) -> None:
    with pytest.raises(DependencyUnavailable):
        store.fetch(store.address("adapters", "nowhere"))


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest"])
def test_a_step_does_not_take_a_folder_that_is_not_as_it_was_published(
    store: ArtifactStore, tmp_path: Path, damage: str
) -> None:
    """A disk that loses the end of a file, or a hand that edits one: an adapter would not be of the rows it names."""
    published = folder(tmp_path / "a")
    files = {"inner/data.txt": hashlib.sha256(b"x").hexdigest()}
    (published / "manifest.json").write_text(json.dumps({"files": files}))
    address = store.publish(published, "datasets", "d-1")
    assert store.fetch_whole(address) == store.fetch(address)
    data = store.fetch(address) / "inner" / "data.txt"
    match damage:
        case "cut":
            data.write_text("")
        case "missing":
            data.unlink()
        case "manifest":
            (store.fetch(address) / "manifest.json").write_text('{"files": ')
    with pytest.raises(StepImpossible, match=r"manifest\.json|data\.txt"):
        store.fetch_whole(address)


def test_a_folder_without_its_manifest_is_unavailable(store: ArtifactStore, tmp_path: Path) -> None:
    address = store.address("datasets", "half")
    Path(address).mkdir(parents=True)
    (Path(address) / "train.jsonl").touch()
    with pytest.raises(DependencyUnavailable):
        store.fetch(address)
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match=r"manifest\.json"):
        store.publish(tmp_path / "unfinished", "datasets", "half")
