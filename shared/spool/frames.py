"""Reads frames from the file of one segment, whole and damaged."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from shared.spool.segments import HEADER_BYTES, MAGIC, read_header

_CHUNK_BYTES = 256 << 10


class Frame(NamedTuple):
    """Bytes `start` to `end` of a segment. `appended_at`: Unix seconds; `ciphertext`: its encrypted records."""

    start: int
    end: int
    appended_at: float
    ciphertext: bytes


class SegmentFile(contextlib.AbstractContextManager["SegmentFile"]):
    """A segment open for reading, with one chunk of it in memory."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.drop_chunk()

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def drop_chunk(self) -> None:
        """Read from the file next time, not from memory."""
        self._chunk_start, self._chunk = 0, b""

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def frame(self, offset: int) -> Frame | None:
        """Return the frame at `offset`; None if it is incomplete or damaged."""
        header = read_header(self._read(offset, HEADER_BYTES))
        if header is None:
            return None
        end = offset + HEADER_BYTES + header.length
        ciphertext = self._read(offset + HEADER_BYTES, header.length)
        if len(ciphertext) < header.length or xxh3_64_intdigest(ciphertext) != header.checksum:
            return None
        return Frame(offset, end, header.appended_at, ciphertext)

    def is_incomplete(self, offset: int) -> bool:
        """Return True if nothing follows but the beginning of one frame, or zeros that a power cut left."""
        remaining = self.size() - offset
        if remaining < HEADER_BYTES:
            return True
        header = read_header(self._read(offset, HEADER_BYTES))
        if header is not None:
            return remaining < HEADER_BYTES + header.length
        return not self._read(offset, remaining).strip(b"\0")

    def find_frame(self, offset: int) -> int | None:
        """Return the offset of the first whole frame at or behind `offset`."""
        data = self._read(offset, max(0, self.size() - offset))
        found = data.find(MAGIC)
        while found >= 0:
            if self.frame(offset + found) is not None:
                return offset + found
            found = data.find(MAGIC, found + 1)
        return None

    def _read(self, offset: int, size: int) -> bytes:
        if not (self._chunk_start <= offset and offset + size <= self._chunk_start + len(self._chunk)):
            self._chunk_start, self._chunk = offset, os.pread(self._descriptor, max(size, _CHUNK_BYTES), offset)
        start = offset - self._chunk_start
        return self._chunk[start : start + size]
