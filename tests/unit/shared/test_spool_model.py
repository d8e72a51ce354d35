"""The spool against a model, through crashes, torn writes, full disks and changed bits.

The model: whatever `append` acknowledged, and no tear or flipped bit destroyed, is read in order until it is advanced
past, then never again; nothing else is ever read.
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
from shared.spool import Position, Record, Spool, SpoolFull, SpoolOptions, SpoolReader, Sync
from shared.spool.segments import QUARANTINE_SUFFIX, segment_numbers, segment_path

CIPHER = Cipher(bytes(32))
OPTIONS = SpoolOptions(sync=Sync.PROCESS, segment_bytes=700)


@dataclass
class Kept:
    """One acknowledged record, and the bytes of the frame that it lies in."""

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
        self.pending: list[Kept] = []
        self.read: list[tuple[int, Position]] = []  # What the last read gave: records up to here, and its position.
        self.flipped: set[Path] = set()
        self.cut_off: set[Path] = set()
        self.made = 0

    def teardown(self) -> None:
        if self.spool is not None:
            self.spool.close()
        while got := self.reader.read(7, 1 << 20):
            self.expect([s.record.value for s in got], len(got))
            self.reader.advance(got[-1].position)
            del self.pending[: len(got)]
        assert not self.pending
        assert segment_numbers(self.slot) == []
        aside = {segment_path(self.slot, number) for number in segment_numbers(self.slot, QUARANTINE_SUFFIX)}
        assert self.flipped - self.cut_off <= aside <= self.flipped
        self.settle.stop()
        shutil.rmtree(self.folder)

    def expect(self, values: list[bytes], count: int) -> None:
        assert values == [kept.value for kept in self.pending[:count]]

    def last_segment(self) -> Path | None:
        listed = segment_numbers(self.slot)
        return segment_path(self.slot, listed[-1]) if listed else None

    def records(self, sizes: list[int]) -> list[Record]:
        made = []
        for size in sizes:
            self.made += 1
            made.append(Record("t", b"k", b"%d." % self.made + b"x" * size))
        return made

    @precondition(lambda self: self.spool is not None)
    @rule(sizes=st.lists(st.integers(0, 150), min_size=1, max_size=4))
    def append(self, sizes: list[int]) -> None:
        before = self.last_segment()
        start = before.stat().st_size if before else 0
        records = self.records(sizes)
        self.spool.append(records)
        path = self.last_segment()
        assert path is not None
        start, end = (start if path == before else 0), path.stat().st_size
        self.pending += [Kept(record.value, path, start, end) for record in records]

    @precondition(lambda self: self.spool is not None)
    @rule(size=st.integers(0, 150), kept=st.integers(0, 120), truncates=st.booleans())
    def append_to_a_full_disk(self, size: int, kept: int, truncates: bool) -> None:
        real = os.write

        def write(descriptor: int, data: bytes) -> int:
            if kept == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data[: min(kept, len(data) - 1)])

        with (
            patch("shared.spool.writer.os.write", write),
            patch("shared.spool.writer.os.ftruncate", os.ftruncate if truncates else _fails),
            pytest.raises(SpoolFull),
        ):
            self.spool.append(self.records([size]))

    @precondition(lambda self: self.spool is not None)
    @rule(cut=st.none() | st.integers(0, 800), tail=st.binary(max_size=80) | st.integers(1, 5_000).map(bytes))
    def crash(self, cut: int | None, tail: bytes) -> None:
        """The owner dies; with `cut` the power goes too, and instead of its end the last segment has some bytes."""
        kill(self.spool)
        self.spool = None
        path = self.last_segment()
        if cut is None or path is None:
            return
        size = min(cut, path.stat().st_size)
        os.truncate(path, size)
        with path.open("ab") as file:
            file.write(tail)
        self.pending = [kept for kept in self.pending if kept.path != path or kept.end <= size]
        self.cut_off.add(path)  # What was flipped may be gone.
        whole = size in {0, *(kept.end for kept in self.pending if kept.path == path)}
        if tail.strip(b"\0") or not whole:  # Only zeros behind a whole record are surely no damage.
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
            got = self.reader.read(count, max_bytes)
        self.expect([s.record.value for s in got], len(got))
        assert len(got) <= count
        if self.pending:
            assert got
        if max_bytes == 1 << 20:
            assert len(got) == min(count, len(self.pending))
        self.read = [(n, s.position) for n, s in enumerate(got, 1)]

    @precondition(lambda self: self.read)
    @rule(count=st.integers(1, 12))
    def read_on(self, count: int) -> None:
        n, position = self.read[-1]
        got = self.reader.read(count, 1 << 20, after=position)
        assert [s.record.value for s in got] == [kept.value for kept in self.pending[n : n + count]]

    @precondition(lambda self: self.read)
    @rule(draw=st.data())
    def advance(self, draw: st.DataObject) -> None:
        n, position = draw.draw(st.sampled_from(self.read))
        self.reader.advance(position)
        del self.pending[:n]
        self.read = []

    @precondition(lambda self: self.read)
    @rule()
    def advance_without_room_for_the_cursor(self) -> None:
        n, position = self.read[-1]
        with patch("shared.spool.segments.Path.write_bytes", _fails):
            self.reader.advance(position)
        del self.pending[:n]
        self.read = []

    @rule()
    def restart_reader(self) -> None:
        self.reader.advance(Position(0, 0, 0))  # There is room again for a cursor that could not be written.
        self.reader = SpoolReader(self.slot, CIPHER)
        self.read = []

    @precondition(lambda self: self.pending)
    @rule(draw=st.data())
    def flip_a_bit(self, draw: st.DataObject) -> None:
        kept = draw.draw(st.sampled_from(self.pending))
        at = draw.draw(st.integers(kept.start, kept.end - 1))
        with kept.path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << draw.draw(st.integers(0, 7))]))
        self.pending = [k for k in self.pending if (k.path, k.start) != (kept.path, kept.start)]
        self.flipped.add(kept.path)
        self.read = []

    @invariant()
    def the_backlog_is_empty_only_when_all_is_shipped(self) -> None:
        if self.pending:
            assert self.reader.backlog.bytes > 0


def _fails(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def kill(spool: Spool) -> None:
    """What the kernel does when the owner dies: its descriptors are closed, nothing else happens."""
    if spool._descriptor is not None:
        os.close(spool._descriptor)
    spool._lock.close()


SpoolAndModel.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
test_the_spool_keeps_what_its_model_keeps: Callable[..., object] = SpoolAndModel.TestCase
