"""The reader of a spool: records in order, at least once, until `advance` confirms that they are shipped.

It runs in another process while the writer appends, without a lock between them: data below a file's end never changes,
except for a partial write that the writer removes again. A segment is finished when a later one exists or its owner is
dead. An incomplete frame at the end of a finished segment was never acknowledged, or a power cut lost it: it is skipped
and counted. A damaged frame is logged as an error and skipped, and its segment is quarantined.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from shared.privacy.encryption import Cipher, DecryptionFailed, DecryptionKeyMissing
from shared.spool.frames import Frame, SegmentFile
from shared.spool.records import Backlog, Record, SpooledRecord, SpoolPosition
from shared.spool.segments import (
    QUARANTINE_SUFFIX,
    load_cursor,
    measure_backlog,
    save_cursor,
    segment_numbers,
    segment_path,
    unpack_frame,
)
from shared.spool.slots import has_owner

_log = logging.getLogger(__name__)
_SETTLE_SECONDS = 0.01


class SpoolReader:
    """Reads one slot; hold `lock_for_shipping(slot)` meanwhile."""

    def __init__(self, slot: Path, cipher: Cipher) -> None:
        self.slot = slot
        self._cipher = cipher
        self._cursor = self._saved_cursor = load_cursor(slot)
        self._cursor_failed = False
        self._incomplete: dict[int, int] = {}
        self._damaged: set[int] = set()

    @property
    def incomplete_bytes(self) -> int:
        """Bytes of incomplete frames that this reader skipped."""
        return sum(self._incomplete.values())

    @property
    def quarantined_segments(self) -> int:
        """How many segments are quarantined because they are damaged."""
        return len(segment_numbers(self.slot, QUARANTINE_SUFFIX))

    @property
    def backlog(self) -> Backlog:
        return measure_backlog(self.slot, self._cursor)

    def read(self, max_records: int, max_bytes: int, after: SpoolPosition | None = None) -> list[SpooledRecord]:
        """Read the records behind `after`, by default behind the cursor: always the same ones until `advance`.

        At most `max_records`, and at most `max_bytes` of topics, keys and values, but at least one record. Empty if
        there are none for now. Raises `DecryptionKeyMissing` if the next record needs a key that is not here.
        """
        records: list[SpooledRecord] = []
        size = 0
        end = self._cursor
        try:
            for spooled, position in self._records_from(after or self._cursor):
                end = position
                if spooled is None:
                    continue
                record = spooled.record
                size += len(record.topic) + len(record.key) + len(record.value)
                if records and size > max_bytes:
                    return records
                records.append(spooled)
                if len(records) >= max_records:
                    return records
        except DecryptionKeyMissing:
            if records:
                return records
            raise
        if after is None and not records:
            self.advance(end)  # Past incomplete, damaged and empty parts, so that finished segments are deleted.
        return records

    def advance(self, position: SpoolPosition) -> None:
        """Confirm that all before `position` is shipped, for later readers too, and delete its segments.

        On a full disk the old cursor stays, so that a crash ships some records twice; segments are deleted even so.
        """
        self._cursor = max(position, self._cursor)
        if self._saved_cursor != self._cursor:
            self._save_cursor()
        numbers = segment_numbers(self.slot)
        for number in numbers:
            # The last segment stays until a saved cursor is past it; otherwise its number could be used again.
            if number < self._cursor.segment and (number != numbers[-1] or number < self._saved_cursor.segment):
                self._delete_segment(number)
        if self._saved_cursor != self._cursor:  # Deleting segments may have freed space.
            self._save_cursor()

    def _save_cursor(self) -> None:
        try:
            save_cursor(self.slot, self._cursor)
        except OSError as error:
            if not self._cursor_failed:
                _log.warning(
                    "cannot save the cursor of %s (%s): after a crash records are shipped twice", self.slot, error
                )
            self._cursor_failed = True
        else:
            self._saved_cursor, self._cursor_failed = self._cursor, False

    def _records_from(self, start: SpoolPosition) -> Iterator[tuple[SpooledRecord | None, SpoolPosition]]:
        """Yield each record from `start` on with the position behind it, and None with positions to skip to."""
        numbers = segment_numbers(self.slot)
        # Listing a folder may miss a file created meanwhile but include a later one. A second listing has every file
        # up to the last of the first.
        numbers = [number for number in segment_numbers(self.slot) if numbers and number <= numbers[-1]]
        for number in numbers:
            if number < start.segment:
                continue
            position = start if number == start.segment else SpoolPosition(number, 0, 0)
            finished = number != numbers[-1] or not has_owner(self.slot)  # Before reading: it cannot grow afterwards.
            with contextlib.suppress(FileNotFoundError), SegmentFile(segment_path(self.slot, number)) as file:
                for frame, records in self._frames(file, number, position.offset, finished):
                    yield from _spooled_records(number, frame, records, position)
                    position = SpoolPosition(number, frame.end, 0)
            yield None, SpoolPosition(number + 1, 0, 0) if finished else position

    def _frames(
        self, file: SegmentFile, number: int, offset: int, finished: bool
    ) -> Iterator[tuple[Frame, list[Record]]]:
        """Yield the whole frames from `offset` to the end, with their records."""
        while True:
            frame = file.frame(offset)
            if frame is None and offset >= file.size():
                return
            if frame is None and file.is_incomplete(offset):
                if finished:
                    self._incomplete[number] = file.size() - offset
                return
            if frame is None and not finished:  # The writer may just have removed a partial write: look again.
                time.sleep(_SETTLE_SECONDS)
                file.drop_chunk()
                if file.frame(offset) is not None or file.is_incomplete(offset):
                    continue
            records = self._decrypted(frame) if frame is not None else None
            if frame is not None and records is not None:
                yield frame, records
                offset = frame.end
                continue
            self._quarantine(number, offset)
            next_offset = frame.end if frame is not None else file.find_frame(offset + 1)
            if next_offset is None:
                return
            offset = next_offset

    def _decrypted(self, frame: Frame) -> list[Record] | None:
        try:
            return unpack_frame(frame.ciphertext, self._cipher)
        except DecryptionKeyMissing:  # The operator's error, not damage: nothing may be skipped because of it.
            raise
        except DecryptionFailed:
            return None

    def _quarantine(self, number: int, offset: int) -> None:
        if number in self._damaged:
            return
        self._damaged.add(number)
        path = segment_path(self.slot, number)
        _log.error(
            "segment %s is damaged at byte %d: at least one record there cannot be read. Its other records are shipped;"
            " the file is quarantined as %s until you delete it",
            path,
            offset,
            path.with_suffix(QUARANTINE_SUFFIX).name,
        )
        with contextlib.suppress(OSError):  # At once, so that it survives a crash; else `_delete_segment` renames.
            os.link(path, path.with_suffix(QUARANTINE_SUFFIX))

    def _delete_segment(self, number: int) -> None:
        path = segment_path(self.slot, number)
        with contextlib.suppress(FileNotFoundError):
            if number in self._damaged and not path.with_suffix(QUARANTINE_SUFFIX).exists():
                path.rename(path.with_suffix(QUARANTINE_SUFFIX))
            else:
                path.unlink()


def _spooled_records(
    number: int, frame: Frame, records: list[Record], start: SpoolPosition
) -> Iterator[tuple[SpooledRecord, SpoolPosition]]:
    for index, record in enumerate(records, 1):
        if frame.start == start.offset and index <= start.record:
            continue
        end = (
            SpoolPosition(number, frame.end, 0) if index == len(records) else SpoolPosition(number, frame.start, index)
        )
        yield SpooledRecord(record, frame.appended_at, end), end
