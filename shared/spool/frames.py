"""Frames in one segment's file, good and bad."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from zlib import crc32

from shared.spool.segments import HEADER_BYTES, MAGIC, header

_CHUNK = 256 << 10


class Frame(NamedTuple):
    """Bytes `start` to `end` of a segment. `appended_at`: Unix seconds."""

    start: int
    end: int
    appended_at: float
    sealed: bytes


class SegmentFile:
    """A segment open for reading; a chunk of it in memory."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.forget()

    def __enter__(self) -> SegmentFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)

    def forget(self) -> None:
        """Read from the file again, not from memory."""
        self._base, self._data = 0, b""

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def frame(self, at: int) -> Frame | None:
        """The frame at `at` if it is whole and unchanged."""
        head = header(self._bytes(at, HEADER_BYTES))
        if head is None:
            return None
        end = at + HEADER_BYTES + head.length
        sealed = self._bytes(at + HEADER_BYTES, head.length)
        if len(sealed) < head.length or crc32(sealed) != head.check:
            return None
        return Frame(at, end, head.appended_at, sealed)

    def is_torn(self, at: int) -> bool:
        """Whether from `at` on there is the beginning of one frame, or zeros that a power cut left: no whole frame."""
        rest = self.size() - at
        if rest < HEADER_BYTES:
            return True
        head = header(self._bytes(at, HEADER_BYTES))
        if head is not None:
            return rest < HEADER_BYTES + head.length
        return not self._bytes(at, rest).strip(b"\0")

    def find_frame(self, at: int) -> int | None:
        """Where the first good frame at or behind `at` starts."""
        rest = self._bytes(at, max(0, self.size() - at))
        found = rest.find(MAGIC)
        while found >= 0:
            if self.frame(at + found) is not None:
                return at + found
            found = rest.find(MAGIC, found + 1)
        return None

    def _bytes(self, at: int, size: int) -> bytes:
        if not (self._base <= at and at + size <= self._base + len(self._data)):
            self._base, self._data = at, os.pread(self._descriptor, max(size, _CHUNK), at)
        start = at - self._base
        return self._data[start : start + size]
