"""The spool behaves like its model through crashes, partial writes, full disks and flipped bits.

The model: what `append` acknowledged, unless a crash or a flipped bit destroyed it, is read in order until the reader
advances past it, then never again; nothing else is ever read.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.privacy.encryption import Cipher
from shared.spool import Record, Spool, SpoolOptions, SpoolPosition, SpoolReader, SpoolUnavailable, Sync
from shared.spool.segments import QUARANTINE_SUFFIX, segment_numbers, segment_path

CIPHER = Cipher(bytes(32))
OPTIONS = SpoolOptions(sync=Sync.PROCESS, segment_bytes=700)


@dataclass
class Acknowledged:
    """An acknowledged record, and the position of its frame."""

    value: bytes
    path: Path
    start: int
    end: int


class SpoolAndModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.settle = patch("shared.spool.reader._SETTLE_SECONDS", 0.0)
        self.settle.start()
        self.spool: Spool | None = Spool.open(self.folder, CIPHER, OPTIONS)
        self.slot = self.spool.slot
        self.reader = SpoolReader(self.slot, CIPHER)
        self.pending: list[Acknowledged] = []
        self.last_read: list[
            tuple[int, SpoolPosition]
        ] = []  # Of the last read: number of records, and the position behind them.
        self.flipped: set[Path] = set()
        self.cut_off: set[Path] = set()
        self.record_count = 0

    def teardown(self) -> None:
        if self.spool is not None:
            self.spool.close()
        while spooled := self.reader.read(7, 1 << 20):
            self.expect([s.record.value for s in spooled], len(spooled))
            self.reader.advance(spooled[-1].position)
            del self.pending[: len(spooled)]
        assert not self.pending
        assert segment_numbers(self.slot) == []
        quarantined = {segment_path(self.slot, number) for number in segment_numbers(self.slot, QUARANTINE_SUFFIX)}
        assert self.flipped - self.cut_off <= quarantined <= self.flipped
        self.settle.stop()
        shutil.rmtree(self.folder)

    def expect(self, values: list[bytes], count: int) -> None:
        assert values == [p.value for p in self.pending[:count]]

    def last_segment(self) -> Path | None:
        listed = segment_numbers(self.slot)
        return segment_path(self.slot, listed[-1]) if listed else None

    def new_records(self, sizes: list[int]) -> list[Record]:
        records = []
        for size in sizes:
            self.record_count += 1
            records.append(Record("t", b"k", b"%d." % self.record_count + b"x" * size))
        return records

    @precondition(lambda self: self.spool is not None)
    @rule(sizes=st.lists(st.integers(0, 150), min_size=1, max_size=4))
    def append(self, sizes: list[int]) -> None:
        before = self.last_segment()
        start = before.stat().st_size if before else 0
        records = self.new_records(sizes)
        self.spool.append(records)
        path = self.last_segment()
        assert path is not None
        start, end = (start if path == before else 0), path.stat().st_size
        self.pending += [Acknowledged(record.value, path, start, end) for record in records]

    @precondition(lambda self: self.spool is not None)
    @rule(size=st.integers(0, 150), written=st.integers(0, 120), truncates=st.booleans())
    def append_to_a_full_disk(self, size: int, written: int, truncates: bool) -> None:
        real = os.write

        def write(descriptor: int, data: bytes) -> int:
            if written == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data[: min(written, len(data) - 1)])

        with (
            patch("shared.spool.writer.os.write", write),
            patch("shared.spool.writer.os.ftruncate", os.ftruncate if truncates else _fails),
            pytest.raises(SpoolUnavailable),
        ):
            self.spool.append(self.new_records([size]))

    @precondition(lambda self: self.spool is not None)
    @rule(cut=st.none() | st.integers(0, 800), tail=st.binary(max_size=80) | st.integers(1, 5_000).map(bytes))
    def crash(self, cut: int | None, tail: bytes) -> None:
        """The owner dies; with `cut`, in a power cut that replaces the end of the last segment by some bytes."""
        kill(self.spool)
        self.spool = None
        path = self.last_segment()
        if cut is None or path is None:
            return
        size = min(cut, path.stat().st_size)
        os.truncate(path, size)
        with path.open("ab") as file:
            file.write(tail)
        self.pending = [p for p in self.pending if p.path != path or p.end <= size]
        self.cut_off.add(path)  # It may have cut off the flipped bits.
        whole = size in {0, *(p.end for p in self.pending if p.path == path)}
        if tail.strip(b"\0") or not whole:  # Only zeros behind a whole record are certainly not damage.
            self.flipped.add(path)
        self.restart_reader()

    @precondition(lambda self: self.spool is None)
    @rule()
    def adopt(self) -> None:
        self.spool = Spool.open(self.folder, CIPHER, OPTIONS)
        assert self.spool.slot == self.slot

    @rule(count=st.integers(1, 12), max_bytes=st.sampled_from([1, 200, 1 << 20]), room=st.booleans())
    def read_some(self, count: int, max_bytes: int, room: bool) -> None:
        with nullcontext() if room else patch("shared.spool.segments.Path.write_bytes", _fails):
            spooled = self.reader.read(count, max_bytes)
        self.expect([s.record.value for s in spooled], len(spooled))
        assert len(spooled) <= count
        if self.pending:
            assert spooled
        if max_bytes == 1 << 20:
            assert len(spooled) == min(count, len(self.pending))
        self.last_read = [(n, s.position) for n, s in enumerate(spooled, 1)]

    @precondition(lambda self: self.last_read)
    @rule(count=st.integers(1, 12))
    def read_further(self, count: int) -> None:
        n, position = self.last_read[-1]
        spooled = self.reader.read(count, 1 << 20, after=position)
        assert [s.record.value for s in spooled] == [p.value for p in self.pending[n : n + count]]

    @precondition(lambda self: self.last_read)
    @rule(draw=st.data())
    def advance(self, draw: st.DataObject) -> None:
        n, position = draw.draw(st.sampled_from(self.last_read))
        self.reader.advance(position)
        del self.pending[:n]
        self.last_read = []

    @precondition(lambda self: self.last_read)
    @rule()
    def advance_without_room_for_the_cursor(self) -> None:
        n, position = self.last_read[-1]
        with patch("shared.spool.segments.Path.write_bytes", _fails):
            self.reader.advance(position)
        del self.pending[:n]
        self.last_read = []

    @rule()
    def restart_reader(self) -> None:
        self.reader.advance(SpoolPosition(0, 0, 0))  # Save a cursor that found no room before.
        self.reader = SpoolReader(self.slot, CIPHER)
        self.last_read = []

    @precondition(lambda self: self.pending)
    @rule(draw=st.data())
    def flip_a_bit(self, draw: st.DataObject) -> None:
        record = draw.draw(st.sampled_from(self.pending))
        at = draw.draw(st.integers(record.start, record.end - 1))
        with record.path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << draw.draw(st.integers(0, 7))]))
        self.pending = [p for p in self.pending if (p.path, p.start) != (record.path, record.start)]
        self.flipped.add(record.path)
        self.last_read = []

    @invariant()
    def the_backlog_is_empty_only_when_everything_is_shipped(self) -> None:
        if self.pending:
            assert self.reader.backlog.bytes > 0


def _fails(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def kill(spool: Spool) -> None:
    """Close the descriptors and do nothing else, as the kernel does when the owner dies."""
    if spool._descriptor is not None:
        os.close(spool._descriptor)
    spool._lock.close()


SpoolAndModel.TestCase.settings = settings(max_examples=25, stateful_step_count=40)
test_the_spool_behaves_like_its_model: Callable[..., object] = SpoolAndModel.TestCase
