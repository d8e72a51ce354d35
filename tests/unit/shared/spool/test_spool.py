"""The spool stores what it acknowledged, refuses what it cannot store, and deletes what is shipped."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from shared.errors import InvalidMessage
from shared.privacy.encryption import Cipher, DecryptionFailed, DecryptionKeyMissing
from shared.spool import (
    Record,
    Spool,
    SpoolOptions,
    SpoolPosition,
    SpoolReader,
    SpoolUnavailable,
    Sync,
    list_slots,
    lock_for_shipping,
)
from shared.spool.segments import (
    CURSOR_NAME,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    QUARANTINE_SUFFIX,
    pack_frame,
    segment_numbers,
    segment_path,
    unpack_frame,
)
from tests.waiting import PATIENCE_SECONDS

CIPHER = Cipher(bytes(32))
PROCESS = SpoolOptions(sync=Sync.PROCESS)
SMALL = SpoolOptions(sync=Sync.PROCESS, segment_bytes=1)  # A segment for each append.


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool.open(tmp_path, CIPHER, PROCESS)
    yield opened
    opened.close()


def record(value: bytes = b"v") -> Record:
    return Record("t", b"k", value)


def values(reader: SpoolReader) -> list[bytes]:
    return [s.record.value for s in reader.read(1000, 1 << 20)]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_record_is_read_back_with_the_time_of_its_append(spool: Spool) -> None:
    wanted = [Record("predictions.logged.v1", "clé".encode(), b"\0" * 70_000), Record("feedback.given.v1", b"", b"")]
    before = time.time()
    spool.append(wanted)
    spooled = SpoolReader(spool.slot, CIPHER).read(10, 1 << 20)
    assert [s.record for s in spooled] == wanted
    assert before <= spooled[0].appended_at <= time.time()


def test_headers_are_read_back_beside_records_without_headers(spool: Spool) -> None:
    headers = (("traceparent", b"00-a-b-01"), ("x-ä", b""), ("binary", b"\xff\x00"))
    wanted = [Record("t", b"k", b"1"), Record("t", b"", b"", headers), Record("tü", b"k", b"3", headers[:1]), record()]
    spool.append(wanted)
    assert [s.record for s in SpoolReader(spool.slot, CIPHER).read(10, 1 << 20)] == wanted


def decrypted(record: Record) -> bytes:
    """What a frame of the record has behind its header, in clear."""
    return CIPHER.decrypt(bytes(pack_frame([record], CIPHER, 1.0)[HEADER_BYTES:]))


def test_truncated_records_are_a_damaged_frame() -> None:
    whole = decrypted(Record("t", b"k", b"v", (("name", b"value"),)))
    for end in range(len(whole)):
        with pytest.raises(DecryptionFailed):
            unpack_frame(CIPHER.encrypt(whole[:end]), CIPHER)


def test_records_on_disk_are_unreadable(spool: Spool) -> None:
    spool.append([Record("topic-in-clear", b"key-in-clear", b"value-in-clear" * 10)])
    data = b"".join(path.read_bytes() for path in spool.slot.iterdir())
    assert len(data) > 140
    assert b"in-clear" not in data
    assert all(path.stat().st_mode & 0o077 == 0 for path in spool.slot.iterdir())


def test_a_reader_can_advance_into_the_middle_of_a_batch(spool: Spool) -> None:
    spool.append([record(b"1"), record(b"2"), record(b"3")])
    reader = SpoolReader(spool.slot, CIPHER)
    reader.advance(reader.read(10, 1 << 20)[1].position)
    assert values(reader) == [b"3"]
    assert values(SpoolReader(spool.slot, CIPHER)) == [b"3"]


def test_a_record_larger_than_max_bytes_is_read_alone(spool: Spool) -> None:
    spool.append([record(b"x" * 1000)])
    spool.append([record(b"y")])
    assert len(SpoolReader(spool.slot, CIPHER).read(10, 1)) == 1


def test_an_append_larger_than_a_frame_is_invalid_and_not_stored(spool: Spool) -> None:
    with pytest.raises(InvalidMessage):
        spool.append([record(bytes(MAX_FRAME_BYTES))])
    spool.append([])
    assert spool.backlog.bytes == 0


def test_the_backlog_is_what_is_not_shipped(spool: Spool) -> None:
    reader = SpoolReader(spool.slot, CIPHER)
    assert (spool.backlog.bytes, spool.backlog.oldest, reader.backlog.oldest) == (0, None, None)
    spool.append([record(b"1")])
    spool.append([record(b"2")])
    first, second = reader.read(10, 1 << 20)
    assert spool.backlog == reader.backlog
    assert spool.backlog.oldest == first.appended_at
    reader.advance(first.position)
    assert spool.backlog.oldest == second.appended_at
    reader.advance(second.position)
    assert (spool.backlog.bytes, spool.backlog.oldest) == (0, None)


def test_the_size_limit_refuses_until_something_is_shipped(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=Sync.PROCESS, max_bytes=5000, segment_bytes=1000))
    appended = 0
    with pytest.raises(SpoolUnavailable, match="limit") as refused:
        while True:
            spool.append([record(b"%d" % appended)])
            appended += 1
    assert refused.value.way_out
    assert sum(path.stat().st_size for path in spool.slot.glob("*.segment")) <= 5000
    reader = SpoolReader(spool.slot, CIPHER)
    spooled = reader.read(1000, 1 << 20)
    assert [s.record.value for s in spooled] == [b"%d" % n for n in range(appended)]
    reader.advance(spooled[-1].position)
    spool._next_measurement = 0.0
    spool.append([record(b"again")])
    assert values(reader) == [b"again"]
    spool.close()


def test_the_age_limit_refuses_until_the_oldest_is_shipped(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=Sync.PROCESS, max_age_seconds=60))
    reader = SpoolReader(spool.slot, CIPHER)
    with patch("shared.spool.writer.time.time", lambda: 1000.0):
        spool.append([record(b"old")])
    with patch("shared.spool.writer.time.time", lambda: 1059.0):
        spool.append([record(b"young")])
    with patch("shared.spool.writer.time.time", lambda: 1061.0):
        with pytest.raises(SpoolUnavailable, match="oldest"):
            spool.append([record(b"refused")])
        reader.advance(reader.read(1, 1 << 20)[0].position)
        spool._next_measurement = 0.0
        spool.append([record(b"next")])
    assert values(reader) == [b"young", b"next"]
    spool.close()


def test_a_new_owner_knows_the_age_of_the_backlog(tmp_path: Path) -> None:
    options = SpoolOptions(sync=Sync.PROCESS, max_age_seconds=60)
    spool = Spool.open(tmp_path, CIPHER, options)
    with patch("shared.spool.writer.time.time", lambda: 1000.0):
        spool.append([record()])
    spool.close()
    with pytest.raises(SpoolUnavailable, match="oldest"):
        Spool.open(tmp_path, CIPHER, options).append([record()])


def test_a_new_owner_begins_a_segment_and_does_not_touch_the_old_one(tmp_path: Path) -> None:
    first = Spool.open(tmp_path, CIPHER, PROCESS)
    first.append([record(b"1")])
    (old,) = segment_numbers(first.slot)
    first.close()
    before = segment_path(first.slot, old).read_bytes()
    second = Spool.open(tmp_path, CIPHER, PROCESS)
    second.append([record(b"2")])
    assert second.slot == first.slot
    assert segment_path(first.slot, old).read_bytes() == before
    assert values(SpoolReader(first.slot, CIPHER)) == [b"1", b"2"]
    second.close()


def test_two_living_owners_have_different_slots_and_a_released_one_is_reused(tmp_path: Path) -> None:
    assert list_slots(tmp_path / "nothing") == []
    a, b = Spool.open(tmp_path, CIPHER, PROCESS), Spool.open(tmp_path, CIPHER, PROCESS)
    assert [a.slot, b.slot] == list_slots(tmp_path)
    a.close()
    c = Spool.open(tmp_path, CIPHER, PROCESS)
    assert c.slot == a.slot
    b.close(), c.close()


def test_a_slot_has_at_most_one_shipper(spool: Spool) -> None:
    lock = lock_for_shipping(spool.slot)
    assert lock is not None
    assert lock_for_shipping(spool.slot) is None
    lock.close()
    with lock_for_shipping(spool.slot) or pytest.fail("the lock was not released"):
        assert lock_for_shipping(spool.slot) is None


def test_a_segment_is_deleted_when_all_its_records_are_shipped(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, SMALL)
    for n in range(3):
        spool.append([record(b"%d" % n)])
    reader = SpoolReader(spool.slot, CIPHER)
    spooled = reader.read(10, 1 << 20)
    assert len(segment_numbers(spool.slot)) == 3
    reader.advance(spooled[-1].position)
    assert len(segment_numbers(spool.slot)) == 1  # The last segment of a living owner.
    spool.close()
    assert reader.read(10, 1 << 20) == []
    assert segment_numbers(spool.slot) == []


def test_segments_that_a_crash_left_before_the_cursor_are_deleted(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, SMALL)
    spool.append([record()]), spool.append([record()])
    reader = SpoolReader(spool.slot, CIPHER)
    with patch.object(SpoolReader, "_delete_segment"):  # A crash right after the cursor was written.
        reader.advance(reader.read(10, 1 << 20)[-1].position)
    spool.close()
    assert SpoolReader(spool.slot, CIPHER).read(10, 1 << 20) == []
    assert segment_numbers(spool.slot) == []


def test_a_segment_ends_after_segment_seconds(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=Sync.PROCESS, segment_seconds=-1))
    spool.append([record()]), spool.append([record()])
    assert len(segment_numbers(spool.slot)) == 2
    spool.close()


@pytest.mark.parametrize("at", range(0, HEADER_BYTES + 60, 3))
def test_a_changed_byte_quarantines_its_segment_and_the_other_records_are_read(
    tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool.open(tmp_path, CIPHER, PROCESS)
    size = []
    for n in range(3):
        spool.append([record(b"%d" % n)])
        size.append(spool.backlog.bytes)
    spool.close()
    (number,) = segment_numbers(spool.slot)
    path = segment_path(spool.slot, number)
    flip(path, size[0] + at % (size[1] - size[0]))
    changed = path.read_bytes()

    reader = SpoolReader(spool.slot, CIPHER)
    with caplog.at_level(logging.ERROR):
        spooled = reader.read(10, 1 << 20)
    assert [s.record.value for s in spooled] == [b"0", b"2"]
    assert "is damaged at byte" in caplog.text
    reader = SpoolReader(spool.slot, CIPHER)  # A restart between reading and advancing loses nothing.
    reader.advance(spooled[-1].position)
    assert reader.read(10, 1 << 20) == []
    assert (segment_numbers(spool.slot), reader.quarantined_segments, reader.incomplete_bytes) == ([], 1, 0)
    assert path.with_suffix(QUARANTINE_SUFFIX).read_bytes() == changed


def test_a_damaged_segment_is_quarantined_even_if_it_cannot_be_linked(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, PROCESS)
    spool.append([record()])
    spool.close()
    flip(segment_path(spool.slot, segment_numbers(spool.slot)[0]), 40)
    reader = SpoolReader(spool.slot, CIPHER)
    with patch("shared.spool.reader.os.link", no_room):
        assert reader.read(10, 1 << 20) == []
    assert (segment_numbers(spool.slot), reader.quarantined_segments) == ([], 1)


def test_an_incomplete_end_is_counted_once_and_is_not_damage(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, PROCESS)
    spool.append([record(b"1")])
    whole = spool.backlog.bytes
    spool.append([record(b"2")])
    spool.close()
    path = segment_path(spool.slot, segment_numbers(spool.slot)[0])
    os.truncate(path, whole + 30)
    reader = SpoolReader(spool.slot, CIPHER)
    assert values(reader) == values(reader) == [b"1"]
    assert (reader.incomplete_bytes, reader.quarantined_segments) == (30, 0)


def test_zeros_that_a_power_cut_left_at_the_end_are_not_damage(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, PROCESS)
    spool.append([record(b"1")])
    spool.close()
    path = segment_path(spool.slot, segment_numbers(spool.slot)[0])
    os.truncate(path, path.stat().st_size + 5000)
    reader = SpoolReader(spool.slot, CIPHER)
    assert values(reader) == [b"1"]
    assert (reader.incomplete_bytes, reader.quarantined_segments) == (5000, 0)


def test_a_partial_write_of_a_living_owner_is_read_when_complete(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, PROCESS)
    spool.append([record(b"1")])
    path = segment_path(spool.slot, segment_numbers(spool.slot)[0])
    whole = path.read_bytes()
    reader = SpoolReader(spool.slot, CIPHER)
    for size in range(1, len(whole)):
        path.write_bytes(whole + whole[:size])
        assert values(reader) == [b"1"]
    path.write_bytes(whole + whole)
    assert values(reader) == [b"1", b"1"]
    assert (reader.incomplete_bytes, reader.quarantined_segments) == (0, 0)
    spool.close()


def test_a_missing_key_stops_the_reader_and_skips_nothing(tmp_path: Path) -> None:
    old, new = Cipher(bytes(32)), Cipher(b"n" * 32)
    spool = Spool.open(tmp_path, new, PROCESS)
    spool.append([record(b"readable")])
    spool.close()
    spool = Spool.open(tmp_path, old, PROCESS)
    spool.append([record(b"encrypted")])
    spool.close()
    reader = SpoolReader(spool.slot, new)
    spooled = reader.read(10, 1 << 20)
    assert [s.record.value for s in spooled] == [b"readable"]
    reader.advance(spooled[-1].position)
    for _ in range(2):
        with pytest.raises(DecryptionKeyMissing):
            reader.read(10, 1 << 20)
    assert reader.quarantined_segments == 0
    assert values(SpoolReader(spool.slot, old)) == [b"encrypted"]


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_full_disk_refuses_leaves_nothing_and_recovers_when_there_is_room(spool: Spool, cut: int) -> None:
    spool.append([record(b"1")])
    size, real = spool.backlog.bytes, os.write

    def write(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[:cut]) if cut else no_room() or 0

    with patch("shared.spool.writer.os.write", write), pytest.raises(SpoolUnavailable, match="could not be written"):
        spool.append([record(b"refused")])
    assert spool.backlog.bytes == size
    spool.append([record(b"2")])
    assert values(SpoolReader(spool.slot, CIPHER)) == [b"1", b"2"]
    assert len(segment_numbers(spool.slot)) == 1


def test_a_disk_without_room_for_a_new_file_refuses_and_recovers(tmp_path: Path) -> None:
    Spool.open(tmp_path, CIPHER, SMALL).close()
    real = os.open

    def no_new_segment(path: Path, *how: int) -> int:
        return no_room() or 0 if path.suffix == ".segment" else real(path, *how)

    with patch("shared.spool.writer.os.open", no_new_segment):
        spool = Spool.open(tmp_path, CIPHER, SMALL)
        with pytest.raises(SpoolUnavailable):
            spool.append([record(b"refused")])
    spool.append([record(b"1")])
    with patch("shared.spool.writer.os.open", no_new_segment), pytest.raises(SpoolUnavailable):
        spool.append([record(b"refused")])
    spool.append([record(b"2")])
    assert values(SpoolReader(spool.slot, CIPHER)) == [b"1", b"2"]
    spool.close()


def test_a_folder_that_cannot_be_created_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with patch("shared.spool.slots.os.open", no_room), pytest.raises(SpoolUnavailable) as refused:
        Spool.open(tmp_path, CIPHER, SMALL)
    assert refused.value.way_out


def test_without_room_for_the_cursor_segments_are_deleted_and_only_the_last_is_shipped_twice(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, SMALL)
    for n in range(3):
        spool.append([record(b"%d" % n)])
    reader = SpoolReader(spool.slot, CIPHER)
    with patch("shared.spool.segments.Path.write_bytes", no_room):
        reader.advance(reader.read(10, 1 << 20)[-1].position)
    assert values(reader) == []
    assert len(segment_numbers(spool.slot)) == 1
    crashed = SpoolReader(spool.slot, CIPHER)
    (tmp_path / "0" / CURSOR_NAME).unlink()
    assert values(crashed) == []  # It read the cursor that the first reader saved when there was room again.
    assert values(SpoolReader(spool.slot, CIPHER)) == [b"2"]
    spool.close()


def test_segment_numbers_are_not_reused_when_the_cursor_was_lost(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, PROCESS)
    spool.append([record(b"1")])
    spool.close()
    reader = SpoolReader(spool.slot, CIPHER)
    reader.advance(reader.read(1, 1 << 20)[-1].position)
    assert values(reader) == []
    (spool.slot / CURSOR_NAME).write_bytes(b"not a cursor")
    time.sleep(1.0 - time.time() % 1.0)  # Numbers are at least the clock's seconds.
    spool = Spool.open(tmp_path, CIPHER, PROCESS)
    spool.append([record(b"2")])
    assert values(reader) == [b"2"]
    spool.close()


def test_an_older_cursor_ships_records_twice_and_loses_none(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, CIPHER, PROCESS)
    for n in range(4):
        spool.append([record(b"%d" % n)])
    reader = SpoolReader(spool.slot, CIPHER)
    spooled = reader.read(10, 1 << 20)
    reader.advance(spooled[0].position)
    old = (spool.slot / CURSOR_NAME).read_bytes()
    reader.advance(spooled[2].position)
    (spool.slot / CURSOR_NAME).write_bytes(old)
    assert values(SpoolReader(spool.slot, CIPHER)) == [b"1", b"2", b"3"]
    reader.advance(SpoolPosition(0, 0, 0))
    assert values(reader) == [b"3"]  # A cursor never goes back.
    spool.close()


async def test_sync_always_waits_for_an_fsync_that_began_after_the_append(tmp_path: Path) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        real(descriptor)

    spool = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=Sync.ALWAYS, sync_seconds=3600))
    with patch("shared.spool.flusher.os.fsync", fsync):
        for n in range(20):
            spool.append([record(b"%d" % n)])
        await asyncio.gather(*(spool.synced() for _ in range(20)))
        assert spool.backlog.bytes in synced
        assert len(synced) < 20  # One fsync for all who wait.
        count = len(synced)
        await spool.synced()
        assert len(synced) == count
    spool.close()


async def test_sync_always_includes_segments_that_ended_meanwhile(tmp_path: Path) -> None:
    synced: set[int] = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    spool = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=Sync.ALWAYS, sync_seconds=3600, segment_bytes=1))
    with patch("shared.spool.flusher.os.fsync", fsync):
        for _ in range(5):
            spool.append([record()])
        await spool.synced()
    assert {path.stat().st_ino for path in spool.slot.glob("*.segment")} <= synced
    assert spool.slot.stat().st_ino in synced  # The entries of the folder too.
    spool.close()


async def test_a_failed_fsync_raises_for_all_who_wait_and_never_counts_as_durable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=Sync.ALWAYS, sync_seconds=3600))
    spool.append([record(b"1")])
    with patch("shared.spool.flusher.os.fsync", side_effect=OSError(errno.EIO, "Input/output error")):
        results = await asyncio.gather(spool.synced(), spool.synced(), return_exceptions=True)
    assert [type(r) for r in results] == [SpoolUnavailable, SpoolUnavailable]
    with pytest.raises(SpoolUnavailable):
        await spool.synced()
    spool.append([record(b"2")])
    await spool.synced()
    assert len(segment_numbers(spool.slot)) == 2  # No more appends to a file whose pages may be lost.
    assert spool.sync_failures == 1
    assert "fsync of the spool" in caplog.text
    spool.close()


def test_sync_interval_fsyncs_in_the_background_and_on_close(tmp_path: Path) -> None:
    sizes: list[int] = []
    spool = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=Sync.INTERVAL, sync_seconds=0.01))
    with patch("shared.spool.flusher.os.fsync", lambda fd: sizes.append(os.fstat(fd).st_size)):
        spool.append([record()])
        end = time.monotonic() + PATIENCE_SECONDS
        while spool.backlog.bytes not in sizes and time.monotonic() < end:
            time.sleep(0.01)
        assert spool.backlog.bytes in sizes
        spool.append([record()])
        size = spool.backlog.bytes
        spool.close()
        assert size in sizes


async def test_other_policies_do_not_wait_for_an_fsync(tmp_path: Path) -> None:
    for sync in (Sync.PROCESS, Sync.INTERVAL):
        spool = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=sync, sync_seconds=3600))
        with patch("shared.spool.flusher.os.fsync", side_effect=AssertionError("fsync before the answer")):
            spool.append([record()])
            await spool.synced()
        spool.close()


def test_an_unused_spool_leaves_no_segment(tmp_path: Path) -> None:
    for sync in Sync:
        spool = Spool.open(tmp_path, CIPHER, SpoolOptions(sync=sync))
        spool.close()
        assert segment_numbers(spool.slot) == []
