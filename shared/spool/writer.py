"""The spool's writer: an append is one `write` to a file, and either the whole of it is kept or an error says no."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from shared.errors import InvalidMessage
from shared.privacy.encryption import Cipher
from shared.spool.flusher import Flusher
from shared.spool.records import Backlog, Record, SpoolFull, SpoolOptions, Sync
from shared.spool.segments import MAX_FRAME_BYTES, load_cursor, next_number, pack, segment_path, unshipped
from shared.spool.slots import SlotLock, take_slot

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.05
_WAY_OUT = "See why nothing is shipped (the broker, the shipper's log), or raise the spool's limits."


class Spool:
    """One per process, used from one thread; not across a fork. Lives in a slot that nobody else writes to.

    The limits cost nothing while they are far: what is not shipped is counted as appended, and only when that count
    reaches a limit is it looked up how much is really left.
    """

    def __init__(self, lock: SlotLock, cipher: Cipher, options: SpoolOptions) -> None:
        self.slot = lock.slot
        self._lock = lock
        self._cipher = cipher
        self._options = options
        self._number = next_number(self.slot) - 1
        self._descriptor: int | None = None
        self._offset = 0
        self._roll_at = math.inf
        self._unshipped = 0
        self._oldest = math.inf
        self._next_look = 0.0
        self._flusher = None if options.sync is Sync.PROCESS else Flusher(self.slot, options.sync_seconds)
        self._look()
        with contextlib.suppress(SpoolFull):  # A full disk may have room later; until then each append says so.
            self._begin_segment()

    @classmethod
    def open(cls, folder: Path, cipher: Cipher, options: SpoolOptions) -> Spool:
        """Take the first slot in `folder` without a living owner, and begin a new segment. Raises `SpoolFull`."""
        return cls(take_slot(folder), cipher, options)

    def append(self, records: Sequence[Record]) -> None:
        """Keep all of `records` or none, in microseconds; when it returns they survive the death of this process.

        Raises `SpoolFull` (a limit, or the disk) and `InvalidMessage` (larger than a frame may be).
        """
        if not records:
            return
        now = time.time()
        frame = self._packed(records, now)
        size = len(frame)
        if self._unshipped + size > self._options.max_bytes or now - self._oldest > self._options.max_age_seconds:
            self._make_sure_of_room(size, now)
        descriptor = self._descriptor
        if (
            descriptor is None
            or (self._offset and (self._offset + size > self._options.segment_bytes or now > self._roll_at))
            or (self._flusher is not None and self._flusher.broken)
        ):
            descriptor = self._begin_segment()
        try:
            written = os.write(descriptor, frame)
        except OSError as error:
            self._cut_back()
            raise _disk_full(self.slot, error) from error
        if written != size:
            self._cut_back()
            raise _disk_full(self.slot, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._offset += size
        self._unshipped += size
        if self._oldest == math.inf:
            self._oldest = now
        if self._flusher is not None:
            self._flusher.appended += 1

    async def synced(self) -> None:
        """Wait until what was appended is as durable as the policy says: at once unless it is ALWAYS. `SpoolFull`."""
        if self._flusher is not None and self._options.sync is Sync.ALWAYS:
            await self._flusher.synced()

    @property
    def backlog(self) -> Backlog:
        """What is in this slot and not shipped; looks at the folder (a tenth of a millisecond)."""
        self._look()
        return Backlog(self._unshipped, None if self._oldest == math.inf else self._oldest)

    @property
    def sync_failures(self) -> int:
        """How often fsync failed; each is logged as an error."""
        return self._flusher.failures if self._flusher is not None else 0

    def close(self) -> None:
        """Bring everything to the disk as the policy says and give the slot back. What is not shipped stays in it."""
        if self._descriptor is not None and self._offset == 0:
            with contextlib.suppress(OSError):
                segment_path(self.slot, self._number).unlink()
        self._end_segment()
        if self._flusher is not None:
            self._flusher.close()
        self._lock.close()

    def _packed(self, records: Sequence[Record], now: float) -> bytes:
        try:
            frame = pack(records, self._cipher, now)
        except struct.error as error:
            raise InvalidMessage(f"A record does not fit the spool's format: {error}") from error
        if len(frame) > MAX_FRAME_BYTES:
            raise InvalidMessage(f"{len(frame)} bytes in one append: the spool takes {MAX_FRAME_BYTES}", "Send less.")
        return frame

    def _make_sure_of_room(self, size: int, now: float) -> None:
        if (moment := time.monotonic()) >= self._next_look:
            self._look()
            self._next_look = moment + _LOOK_SECONDS
        if self._unshipped + size > self._options.max_bytes:
            raise SpoolFull(f"{self._unshipped} bytes in {self.slot} are not shipped: its limit is reached", _WAY_OUT)
        if (age := now - self._oldest) > self._options.max_age_seconds:
            raise SpoolFull(f"The oldest record in {self.slot} waits for {age:.0f} s: its limit is reached", _WAY_OUT)

    def _look(self) -> None:
        self._unshipped, oldest = unshipped(self.slot, load_cursor(self.slot))
        self._oldest = math.inf if oldest is None else oldest

    def _begin_segment(self) -> int:
        self._end_segment()
        self._number += 1
        path = segment_path(self.slot, self._number)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _disk_full(self.slot, error) from error
        self._descriptor, self._offset = descriptor, 0
        self._roll_at = time.time() + self._options.segment_seconds
        if self._flusher is not None:
            self._flusher.begin(descriptor)
        return descriptor

    def _end_segment(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if self._flusher is not None:
            self._flusher.retire(descriptor)
        else:
            os.close(descriptor)

    def _cut_back(self) -> None:
        """Remove what a failed write left; where even that fails it stays as a torn end, and a new segment follows."""
        assert self._descriptor is not None  # noqa: S101 - for mypy; only called after a write to it
        try:
            os.ftruncate(self._descriptor, self._offset)
        except OSError as error:
            _log.warning("a half-written record stays in %s (%s); a new segment follows it", self.slot, error)
            self._end_segment()


def _disk_full(slot: Path, error: OSError) -> SpoolFull:
    return SpoolFull(f"The spool {slot} could not be written: {error.strerror}", "Make room on its disk.")
