"""The writer of a spool: an append is one `write` to a file, stored as a whole or refused with an error."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from shared.errors import InvalidMessage
from shared.privacy.encryption import Cipher
from shared.spool.flusher import Flusher
from shared.spool.records import Backlog, Record, SpoolOptions, SpoolUnavailable, Sync
from shared.spool.segments import (
    MAX_FRAME_BYTES,
    load_cursor,
    measure_backlog,
    next_segment_number,
    pack_frame,
    segment_path,
)
from shared.spool.slots import SlotLock, take_slot

_log = logging.getLogger(__name__)
_MEASURE_SECONDS = 0.05
_WAY_OUT = "Find out why nothing is shipped (broker, shipper's log), or raise the spool's limits."


class Spool:
    """Appends records to a slot of its own. One per process, for one thread; not usable after a fork.

    Checking the limits costs nothing far below them: appended bytes are counted, and only when the count reaches a
    limit is the folder measured for what is not shipped yet.
    """

    def __init__(self, lock: SlotLock, cipher: Cipher, options: SpoolOptions) -> None:
        self.slot = lock.slot
        self._lock = lock
        self._cipher = cipher
        self._options = options
        self._segment = next_segment_number(self.slot) - 1
        self._descriptor: int | None = None
        self._offset = 0
        self._roll_at = math.inf
        self._unshipped = 0
        self._oldest = math.inf
        self._next_measurement = 0.0
        self._flusher = None if options.sync is Sync.PROCESS else Flusher(self.slot, options.sync_seconds)
        self._measure()
        with contextlib.suppress(
            SpoolUnavailable
        ):  # A full disk may have room later; until then each append is refused.
            self._begin_segment()

    @classmethod
    def open(cls, folder: Path, cipher: Cipher, options: SpoolOptions) -> Spool:
        """Take the first slot in `folder` without a living owner and begin a new segment. Raises `SpoolUnavailable`."""
        return cls(take_slot(folder), cipher, options)

    def append(self, records: Sequence[Record]) -> None:
        """Append all of `records` or none, in microseconds; then they survive the death of this process.

        Raises `SpoolUnavailable` (a limit, or the disk) and `InvalidMessage` (larger than a frame can be).
        """
        if not records:
            return
        now = time.time()
        frame = self._pack(records, now)
        size = len(frame)
        if self._unshipped + size > self._options.max_bytes or now - self._oldest > self._options.max_age_seconds:
            self._check_limits(size, now)
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
            self._remove_partial_write()
            raise _disk_full(self.slot, error) from error
        if written != size:
            self._remove_partial_write()
            raise _disk_full(self.slot, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._offset += size
        self._unshipped += size
        if self._oldest == math.inf:
            self._oldest = now
        if self._flusher is not None:
            self._flusher.appended += 1

    async def synced(self) -> None:
        """Wait for the fsync of all appends if `sync` is ALWAYS, else return at once. Raises `SpoolUnavailable`."""
        if self._flusher is not None and self._options.sync is Sync.ALWAYS:
            await self._flusher.synced()

    @property
    def backlog(self) -> Backlog:
        """What is not shipped yet; measures the folder (0.1 ms)."""
        return self._measure()

    @property
    def sync_failures(self) -> int:
        """How many fsyncs failed; each is logged as an error."""
        return self._flusher.failures if self._flusher is not None else 0

    def close(self) -> None:
        """Fsync as `sync` says and release the slot; unshipped records stay in it."""
        if self._descriptor is not None and self._offset == 0:
            with contextlib.suppress(OSError):
                segment_path(self.slot, self._segment).unlink()
        self._end_segment()
        if self._flusher is not None:
            self._flusher.close()
        self._lock.close()

    def _pack(self, records: Sequence[Record], now: float) -> bytearray:
        frame = pack_frame(records, self._cipher, now)
        if len(frame) > MAX_FRAME_BYTES:
            raise InvalidMessage(f"An append of {len(frame)} bytes; the limit is {MAX_FRAME_BYTES}", "Send less.")
        return frame

    def _check_limits(self, size: int, now: float) -> None:
        if (monotonic := time.monotonic()) >= self._next_measurement:
            self._measure()
            self._next_measurement = monotonic + _MEASURE_SECONDS
        if self._unshipped + size > self._options.max_bytes:
            raise SpoolUnavailable(
                f"{self._unshipped} bytes in {self.slot} are not shipped: its limit is reached", _WAY_OUT
            )
        if (age := now - self._oldest) > self._options.max_age_seconds:
            raise SpoolUnavailable(
                f"The oldest record in {self.slot} is {age:.0f} s old: its limit is reached", _WAY_OUT
            )

    def _measure(self) -> Backlog:
        backlog = measure_backlog(self.slot, load_cursor(self.slot))
        self._unshipped, self._oldest = backlog.bytes, math.inf if backlog.oldest is None else backlog.oldest
        return backlog

    def _begin_segment(self) -> int:
        self._end_segment()
        self._segment += 1
        path = segment_path(self.slot, self._segment)
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

    def _remove_partial_write(self) -> None:
        """Truncate what a failed write left; if that fails too, readers skip it, and a new segment follows."""
        assert self._descriptor is not None  # noqa: S101 - for mypy; only called after a write to it
        try:
            os.ftruncate(self._descriptor, self._offset)
        except OSError as error:
            _log.warning("cannot truncate a partial write in %s (%s): a new segment follows", self.slot, error)
            self._end_segment()


def _disk_full(slot: Path, error: OSError) -> SpoolUnavailable:
    return SpoolUnavailable(f"The spool {slot} could not be written: {error.strerror}", "Free disk space.")
