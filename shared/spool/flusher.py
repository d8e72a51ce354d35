"""The thread that fsyncs appends, so that no append ever waits for the disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from pathlib import Path

from shared.files import sync
from shared.spool.records import SpoolUnavailable

_log = logging.getLogger(__name__)


class Flusher:
    """Fsyncs the current segment every `seconds`, or at once when someone waits; one fsync serves all who wait.

    The writer (one thread) calls `begin` and `retire` and counts `appended`. Descriptors are closed here, so none is
    closed during its fsync. The order of the reads in `_flush` makes a lock unnecessary: what was appended before
    `appended` was read is in `_current` as read after it, or already in `_retired`.
    """

    def __init__(self, slot: Path, seconds: float) -> None:
        self.appended = 0
        self.failures = 0
        self.broken = False
        self._slot = slot
        self._seconds = seconds
        self._durable = 0
        self._failed = 0
        self._current: int | None = None
        self._retired: deque[int] = deque()
        self._has_new_file = False
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="spool-flusher", daemon=True)
        self._thread.start()

    def begin(self, descriptor: int) -> None:
        """Fsync `descriptor`, a new segment, from now on."""
        self._has_new_file = True
        self._current = descriptor
        self.broken = False

    def retire(self, descriptor: int) -> None:
        """Fsync `descriptor` once more and close it; nothing will be appended to it."""
        self._retired.append(descriptor)
        self._current = None

    async def synced(self) -> None:
        """Wait until everything appended so far is on the disk. Raises `SpoolUnavailable` if the disk failed."""
        target = self.appended
        if target <= self._durable:
            return
        if target <= self._failed:
            raise _disk_failed()
        future = asyncio.get_running_loop().create_future()
        self._waiters.append((target, future))
        self._wake.set()
        await future

    def close(self) -> None:
        """Fsync everything, close all descriptors and stop the thread."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        if (current := self._current) is not None:
            self.retire(current)
        self._flush()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._seconds)
            self._wake.clear()
            self._flush()

    def _flush(self) -> None:
        target = self.appended
        current = self._current
        retired = [self._retired.popleft() for _ in range(len(self._retired))]
        try:
            try:
                if current is not None and target > self._durable:
                    os.fsync(current)
                for descriptor in retired:
                    os.fsync(descriptor)
                if self._has_new_file:
                    self._has_new_file = False
                    sync(self._slot)
            finally:
                for descriptor in retired:
                    os.close(descriptor)
        except OSError as error:  # The kernel drops pages it could not write: a second fsync would succeed (fsyncgate).
            self.failures += 1
            self._failed, self.broken = target, True
            _log.error("fsync of the spool %s failed (%s): a power cut may lose its last records", self._slot, error)
        else:
            if target > self._failed:
                self._durable = target
        self._notify(target)

    def _notify(self, target: int) -> None:
        failed = target <= self._failed
        while self._waiters and self._waiters[0][0] <= target:
            future = self._waiters.popleft()[1]
            with contextlib.suppress(RuntimeError):  # Its loop is closed, so nobody waits any more.
                future.get_loop().call_soon_threadsafe(_complete, future, failed)


def _complete(future: asyncio.Future[None], failed: bool) -> None:
    if not future.done():
        future.set_exception(_disk_failed()) if failed else future.set_result(None)


def _disk_failed() -> SpoolUnavailable:
    return SpoolUnavailable(
        "The disk under the spool failed to store the records", "Check the disk, then send them again."
    )
