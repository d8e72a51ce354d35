"""The thread that brings appends to the disk, so that no append ever waits for one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from pathlib import Path

from shared.spool.records import SpoolFull
from shared.spool.slots import sync_folder

_log = logging.getLogger(__name__)


class Flusher:
    """fsyncs the current segment every `seconds`, or at once when someone waits; one fsync for all who wait.

    The writer (one thread) calls `begin`, `retire` and counts `appended`; descriptors handed over are closed here, so
    none is closed while it is being fsynced. The orders of reading below need no lock: what was appended before
    `appended` was read is in `_current` as read after it, or was already put into `_retired`.
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
        self._new_entry = False
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="spool-flusher", daemon=True)
        self._thread.start()

    def begin(self, descriptor: int) -> None:
        """`descriptor` is of a new segment that takes the appends from now on."""
        self._new_entry = True
        self._current = descriptor
        self.broken = False

    def retire(self, descriptor: int) -> None:
        """Nothing more will be appended to `descriptor`: fsync it once more, then close it."""
        self._retired.append(descriptor)
        self._current = None

    async def synced(self) -> None:
        """Wait until all that is appended now is on the disk. Raises `SpoolFull` if the disk failed."""
        target = self.appended
        if target <= self._durable:
            return
        if target <= self._failed:
            raise _failure()
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((target, future))
        self._wake.set()
        await future

    def close(self) -> None:
        """Bring everything to the disk and close all descriptors."""
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
                if self._new_entry:
                    self._new_entry = False
                    sync_folder(self._slot)
            finally:
                for descriptor in retired:
                    os.close(descriptor)
        except OSError as error:  # The kernel forgets what it could not write: a second fsync would lie (fsyncgate).
            self.failures += 1
            self._failed, self.broken = target, True
            _log.error(
                "fsync of the spool %s failed (%s): its last records may not survive a power cut", self._slot, error
            )
        else:
            if target > self._failed:
                self._durable = target
        self._answer(target)

    def _answer(self, target: int) -> None:
        failed = target <= self._failed
        while self._waiting and self._waiting[0][0] <= target:
            future = self._waiting.popleft()[1]
            with contextlib.suppress(RuntimeError):  # Its loop is closed: nobody waits any more.
                future.get_loop().call_soon_threadsafe(_settle, future, failed)


def _settle(future: asyncio.Future[None], failed: bool) -> None:
    if not future.done():
        future.set_exception(_failure()) if failed else future.set_result(None)


def _failure() -> SpoolFull:
    return SpoolFull("The disk under the spool failed to keep what was written", "Check the disk; send it again.")
