"""Kept pictures, sound and documents in the artifact store: added, read, and deleted for people and by age.

The gateway's shipper adds files, prediction_log deletes them, and neither knows of the other. A person who is forgotten
has a small object of their own, `media/<task>/forgotten/<user hash>`, with the moment of their request. It is written
before their files are listed and deleted, and read after a file was added, so one of the two always sees the other:
a file that was sent before the request and is uploaded days later does not stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import date, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from obstore.store import LocalStore, ObjectStore, from_url

from schemas.conversation import Media
from shared.errors import DependencyUnavailable, RatchetError
from shared.files import write_atomically
from shared.privacy.encryption import Cipher, load_cipher
from shared.storage.artifacts import RETRY, is_local, local_path, store_errors, wrong_bucket
from shared.storage.media_files import ANONYMOUS, CIPHER, HEADER_BYTES, ROOT, KeptFile, MediaKey, sent_at, unpack

_PARALLEL = 16


class MediaMissing(RatchetError):
    """There is no file with this key (yet, or any more)."""


class MediaStore:
    """The files below `media/` of the artifact store. Every method blocks and raises DependencyUnavailable.

    Safe to use from several threads.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")

    def add(self, key: str, file: bytes) -> bool:
        """Add a file. Returns False if its person was forgotten after it was sent: then it is not in the store.

        Idempotent: the same key has the same content. Raises ValueError for an invalid key or file.
        """
        place, at = MediaKey.parse(key), sent_at(file)
        until = self._forgotten_until(place)
        if until is not None and at <= until:
            return False
        with self._objects() as store:
            if until is None and _exists(store, key):
                return True  # The same content of the same person and day.
            self._put(store, key, file)
        until = self._forgotten_until(place)
        if until is not None and at <= until:
            self._delete([key])
            return False
        return True

    def read(self, key: str) -> bytes:
        """Return a file, encrypted as it is. Raises MediaMissing."""
        place = str(MediaKey.parse(key))
        with self._objects() as store:
            try:
                return bytes(store.get(place).bytes())
            except FileNotFoundError:
                pass
        raise MediaMissing(
            f"there is no {key} in {self._uri}",
            "Its person was forgotten, its task's retention is over, or a gateway has not uploaded it yet.",
        )

    def forget(self, task: str, people: Mapping[str, datetime]) -> None:
        """Delete what these people, by user hash, sent up to a moment, and what of it is uploaded later. Idempotent."""
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(partial(self._mark_forgotten, task), people, people.values()))
            days = self._days(task)
            list(pool.map(partial(self._forget, task, days), people, people.values()))

    def delete_before(self, task: str, day: date) -> int:
        """Delete what was sent to the task before this day (UTC). Returns the number of files."""
        return sum(
            self._delete(keys) for old in self._days(task) if old < day for keys in self._keys(f"{ROOT}/{task}/{old}")
        )

    def _put(self, store: ObjectStore, key: str, file: bytes) -> None:
        if not is_local(self._uri):
            with wrong_bucket(self._uri):
                store.put(key, file)
            return
        try:
            write_atomically(local_path(self._uri) / key, file)  # On the disk: obstore leaves it in the disk's cache.
        except FileNotFoundError as error:
            raise DependencyUnavailable(f"the folder of {key} was deleted as empty: try again") from error

    def _mark_forgotten(self, task: str, subject: str, until: datetime) -> None:
        stored = self._forgotten_until(MediaKey(task, until.date(), subject, ""))
        if stored is None or stored < until:
            with self._objects() as store, wrong_bucket(self._uri):
                store.put(_mark(task, subject), until.isoformat().encode())

    def _forgotten_until(self, place: MediaKey) -> datetime | None:
        if place.subject == ANONYMOUS:
            return None
        with self._objects() as store:
            try:
                return datetime.fromisoformat(bytes(store.get(_mark(place.task, place.subject)).bytes()).decode())
            except FileNotFoundError:
                return None

    def _forget(self, task: str, days: list[date], subject: str, until: datetime) -> None:
        for day in days:
            for keys in self._keys(f"{ROOT}/{task}/{day}/{subject}"):
                if day < until.date():
                    self._delete(keys)
                elif day == until.date():
                    self._delete([key for key in keys if self._is_sent_by(key, until)])

    def _is_sent_by(self, key: str, moment: datetime) -> bool:
        with self._objects() as store:
            try:
                return sent_at(bytes(store.get_range(key, start=0, length=HEADER_BYTES))) <= moment
            except (FileNotFoundError, ValueError):
                return True

    def _days(self, task: str) -> list[date]:
        """The days of which a task has files."""
        with self._objects() as store:
            names = [path.rpartition("/")[2] for path in store.list_with_delimiter(f"{ROOT}/{task}")["common_prefixes"]]
        days = []
        for name in names:
            with suppress(ValueError):
                days.append(date.fromisoformat(name))
        return days

    def _keys(self, prefix: str) -> Iterator[list[str]]:
        with self._objects() as store:
            for batch in store.list(prefix, chunk_size=1_000):
                yield [found["path"] for found in batch]

    def _delete(self, keys: list[str]) -> int:
        if not keys:
            return 0
        with self._objects() as store:
            try:
                store.delete(keys)
            except FileNotFoundError:  # In a folder: another process was first with one of them.
                for key in keys:
                    with suppress(FileNotFoundError):
                        store.delete(key)
        return len(keys)

    @contextmanager
    def _objects(self) -> Iterator[ObjectStore]:
        with store_errors(self._uri):
            try:
                yield self._store
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    raise
                raise DependencyUnavailable(f"the artifacts at {self._uri} are unavailable: {error}") from error

    @cached_property
    def _store(self) -> ObjectStore:
        if is_local(self._uri):
            return LocalStore(local_path(self._uri).absolute(), automatic_cleanup=True, mkdir=True)
        return from_url(self._uri, retry_config={"retry_timeout": RETRY})


class MediaReader:
    """Reads what was kept, decrypted. Its methods block, and raise MediaMissing, DecryptionFailed,
    DependencyUnavailable, and ValueError for what is no key or a `Media` that was not kept."""

    def __init__(self, store: MediaStore, cipher: Cipher) -> None:
        self._store = store
        self._cipher = cipher

    @classmethod
    def open(cls, artifacts: str, secrets_folder: Path) -> MediaReader:
        """A reader of an artifact store, with the key in the secrets folder of the gateway."""
        return cls(MediaStore(artifacts), load_cipher(secrets_folder, CIPHER))

    def file(self, key: str) -> KeptFile:
        """Return what was kept at a `Media.key`: its bytes, and the part of the message that had it."""
        return unpack(self._store.read(key), self._cipher)

    def part(self, media: Media) -> dict[str, Any]:
        """Return the part of the message, as it was sent."""
        if media.key is None:
            raise ValueError(f"the {media.kind} was not kept: its task drops media, or the request named an address")
        return self.file(media.key).part


def _mark(task: str, subject: str) -> str:
    return f"{ROOT}/{task}/forgotten/{subject}"


def _exists(store: ObjectStore, key: str) -> bool:
    try:
        store.head(key)
    except FileNotFoundError:
        return False
    return True
