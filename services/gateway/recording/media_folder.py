"""The folder in which kept pictures, sound and documents wait for the artifact store, encrypted.

    <task>.<day>.<user hash, or anonymous>.<name>     the key of the file in the store, with dots

All gateways of a home share it, and any shipper uploads any file: what a gateway leaves that dies needs no owner. A
file is synced as it is written, whatever the spool's `sync`: it has a thread to wait in.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from services.gateway.formats.media import InlineMedia
from shared.files import sync
from shared.privacy.encryption import load_cipher
from shared.spool import SpoolUnavailable
from shared.storage.media_files import CIPHER, ROOT, MediaKey, pack

_THREADS = 4
"""Each has one file in memory."""
_MEASURE_SECONDS = 1.0
_HEADERS = 1_024
"""Bytes of a file beside its content, about."""
_DOTS = 3
"""In the name of a file, unlike in that of a lock."""
_WAY_OUT = "Find out why the artifact store takes nothing (shipper's log), or raise RATCHET_GATEWAY_SPOOL_MAX_BYTES."


class WaitingFile(NamedTuple):
    """A file that waits for its upload. `since`: Unix seconds."""

    path: Path
    size: int
    since: float

    @property
    def key(self) -> str:
        """Its place in the artifact store. Raises ValueError."""
        return str(MediaKey.parse(f"{ROOT}/{self.path.name.replace('.', '/')}"))


def waiting_files(folder: Path) -> list[WaitingFile]:
    """The files that wait, the oldest first. Blocks."""
    return sorted(_scan(folder), key=lambda file: file.since)


class MediaFolder:
    """Writes files to the folder. `max_bytes`: of all that wait in it. `close` after use."""

    def __init__(self, folder: Path, secrets_folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._secrets = secrets_folder
        self._max_bytes = max_bytes
        self._threads = ThreadPoolExecutor(_THREADS, "media")
        self._lock = threading.Lock()
        self._waiting = 0
        self._measured_at = float("-inf")

    async def start(self) -> None:
        """Load the key."""
        self._cipher = load_cipher(self._secrets, CIPHER)

    async def close(self) -> None:
        self._threads.shutdown()

    async def write(self, media: Collection[InlineMedia]) -> None:
        """Write contents, all or none as far as the limit goes. When this returns they survive a power cut.

        In a thread, so that other requests go on. Raises SpoolUnavailable.
        """
        await asyncio.get_running_loop().run_in_executor(self._threads, self._write, media)

    def _write(self, media: Collection[InlineMedia]) -> None:
        self._reserve(sum((len(item.text) - item.start) * 3 // 4 + _HEADERS for item in media))
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for item in media:
                file = pack(item.surroundings, item.text[item.start :], item.sent_at, self._cipher)
                self._write_file(self._folder / item.key.removeprefix(f"{ROOT}/").replace("/", "."), file)
            sync(self._folder)
        except OSError as error:
            raise SpoolUnavailable(
                f"The media folder {self._folder} could not be written: {error.strerror}", "Free disk space."
            ) from error

    def _write_file(self, path: Path, file: bytes) -> None:
        """Write a file that is complete or absent. One that waits already, of the same content, is replaced."""
        temporary = path.with_name(f".{path.name}.{token_hex(4)}")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
                opened.write(file)
                opened.flush()
                os.fsync(opened.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _reserve(self, size: int) -> None:
        """Count bytes that are about to be written. Raises SpoolUnavailable where the limit is reached.

        Other processes write and upload, too, so the folder is measured: once a second at most.
        """
        with self._lock:
            if time.monotonic() - self._measured_at >= _MEASURE_SECONDS:
                self._waiting = sum(file.size for file in _scan(self._folder))
                self._measured_at = time.monotonic()
            if self._waiting + size > self._max_bytes:
                raise SpoolUnavailable(
                    f"{self._waiting} bytes of media in {self._folder} are not uploaded: their limit is reached",
                    _WAY_OUT,
                )
            self._waiting += size


def _scan(folder: Path) -> Iterator[WaitingFile]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.count(".") == _DOTS:
                with suppress(FileNotFoundError):
                    found = entry.stat()
                    yield WaitingFile(Path(entry.path), found.st_size, found.st_mtime)
