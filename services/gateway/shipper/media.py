"""Uploads kept pictures, sound and documents to the artifact store, as they are: encrypted.

One shipper of a home does it for all gateways, dead ones too; when it dies another one takes over. A file is deleted
here once it is in the store. Until then a repeat does no harm: its name says what is in it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path

from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.recording.media_folder import WaitingFile, waiting_files
from shared.errors import DependencyUnavailable
from shared.spool.slots import SlotLock, lock_for_shipping
from shared.storage.media import MediaStore
from shared.threads import in_thread

_POLL_SECONDS = 0.5
_FINISH_POLL_SECONDS = 0.05
_TAKE_OVER_SECONDS = 2.0
_PARALLEL = 4
_MAX_BACKOFF_SECONDS = 30.0
_INCOMPLETE_SECONDS = 3_600.0
"""A file that is still being written after so long was left by a process that died."""

logger = logging.getLogger(__name__)


class MediaUploader:
    """Uploads what waits in the folder, the oldest first."""

    def __init__(self, folder: Path, store: MediaStore, status: ShipperStatus) -> None:
        self._folder = folder
        self._store = store
        self._status = status
        self._lock: SlotLock | None = None

    async def upload_forever(self) -> None:
        """Background: upload until cancelled; waits while another shipper of the home does it."""
        backoff = _POLL_SECONDS
        while True:
            if self._lock is None:
                self._lock = await in_thread(self._try_lock)
            if self._lock is None:
                await asyncio.sleep(_TAKE_OVER_SECONDS)
                continue
            try:
                await self.upload()
            except (DependencyUnavailable, OSError) as error:
                self._status.media_error = getattr(error, "reason", None) or repr(error)
                logger.warning("media are not uploaded: %s; retrying in %.1f s", self._status.media_error, backoff)
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)
            else:
                self._status.media_error, backoff = "", _POLL_SECONDS
                await asyncio.sleep(_POLL_SECONDS)

    async def finish(self, seconds: float) -> None:
        """Wait until nothing waits, for at most `seconds`. The rest is uploaded by the next shipper."""
        ends = time.monotonic() + seconds
        while self._lock is not None and time.monotonic() < ends:
            if not await in_thread(waiting_files, self._folder):
                return
            await asyncio.sleep(_FINISH_POLL_SECONDS)

    async def upload(self) -> None:
        """Upload once what waits. Raises DependencyUnavailable or OSError of a file that was not uploaded."""
        waiting = await in_thread(self._waiting)
        failed: Exception | None = None
        while waiting:
            self._status.media_bytes = sum(file.size for file in waiting)
            self._status.media_oldest = waiting[0].since
            group, waiting = waiting[:_PARALLEL], waiting[_PARALLEL:]
            results = await asyncio.gather(*(in_thread(self._upload, file) for file in group), return_exceptions=True)
            self._status.media_uploaded += results.count(True)
            self._status.media_forgotten += results.count(False)
            errors = [result for result in results if isinstance(result, BaseException)]
            for error in errors:
                if not isinstance(error, DependencyUnavailable | OSError):
                    raise error
                failed = failed or error
            if len(errors) == len(group):  # The store is away: one file that it refuses does not stop the others.
                break
        if failed is not None:
            raise failed
        self._status.media_bytes, self._status.media_oldest = 0, None

    def _upload(self, file: WaitingFile) -> bool | None:
        """Return False for a file of a person who was forgotten, None for one that is gone or damaged."""
        added: bool | None = None
        try:
            added = self._store.add(file.key, file.path.read_bytes())
        except FileNotFoundError:  # Another shipper was faster, after this one had lost its lock.
            return None
        except ValueError as error:  # Such as an empty file after a power cut: there is nothing to upload.
            logger.error("deleted %s, which is damaged: %s", file.path, error)
        with suppress(FileNotFoundError):
            if file.path.stat().st_mtime == file.since:  # Else it was written again, and waits for its own upload.
                file.path.unlink()
        return added

    def _waiting(self) -> list[WaitingFile]:
        for path in self._folder.glob(".*.*") if self._folder.exists() else ():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _INCOMPLETE_SECONDS:
                    path.unlink()
        return waiting_files(self._folder)

    def _try_lock(self) -> SlotLock | None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return lock_for_shipping(self._folder)
        except OSError as error:
            logger.warning("no media are uploaded from %s: %s", self._folder, error)
            return None
