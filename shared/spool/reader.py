"""The spool's reader: records in order, at least once, until `advance` says that they are shipped.

It works in another process while the writer appends, without a lock between them: what is below a file's end never
changes, but for a half-written record that the writer takes back. A segment is finished when a later one exists or
its owner is dead. What is torn at the end of a finished segment was never acknowledged, or lost by a power cut: it is
skipped and counted. A frame that was changed is an error in the log; its segment is kept as `.quarantine`, the good
frames around it are still read.
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
from shared.spool.records import Backlog, Position, Record, Spooled
from shared.spool.segments import QUARANTINE, load_cursor, numbers, save_cursor, segment_path, unpack, unshipped
from shared.spool.slots import has_owner

_log = logging.getLogger(__name__)
_SETTLE_SECONDS = 0.01


class SpoolReader:
    """Reads one slot; hold `lock_for_shipping(slot)` while you do."""

    def __init__(self, slot: Path, cipher: Cipher) -> None:
        self.slot = slot
        self._cipher = cipher
        self._cursor = self._saved = load_cursor(slot)
        self._complained = False
        self._torn: dict[int, int] = {}
        self._damaged: set[int] = set()

    @property
    def torn_bytes(self) -> int:
        """Bytes of half-written records that this reader skipped."""
        return sum(self._torn.values())

    @property
    def quarantined(self) -> int:
        """How many segments are set aside because something in them was changed."""
        return len(numbers(self.slot, QUARANTINE))

    @property
    def backlog(self) -> Backlog:
        return Backlog(*unshipped(self.slot, self._cursor))

    def read(self, max_records: int, max_bytes: int, after: Position | None = None) -> list[Spooled]:
        """The records behind `after` (a `Spooled.position`), else behind the cursor: always the same until `advance`.

        At most `max_records`; at most `max_bytes` of topics, keys and values, but one record at least. Empty when
        there is nothing more for now. Raises `DecryptionKeyMissing` when the next record was
        encrypted with a key that is not here.
        """
        taken: list[Spooled] = []
        size = 0
        end = self._cursor
        try:
            for spooled, place in self._walk(after or self._cursor):
                end = place
                if spooled is None:
                    continue
                record = spooled.record
                size += len(record.topic) + len(record.key) + len(record.value)
                if taken and size > max_bytes:
                    return taken
                taken.append(spooled)
                if len(taken) >= max_records:
                    return taken
        except DecryptionKeyMissing:
            if taken:
                return taken
            raise
        if after is None and not taken:
            self.advance(end)  # Past what is torn, damaged or empty: finished segments are deleted.
        return taken

    def advance(self, position: Position) -> None:
        """All before `position` is shipped and need not be read again, by no later reader either; frees its segments.

        On a full disk the old cursor stays, which ships some records twice after a crash; segments are freed even so.
        """
        self._cursor = max(position, self._cursor)
        if self._saved != self._cursor:
            self._save()
        listed = numbers(self.slot)
        for number in listed:
            # The number of the last one must not be given again while no cursor on the disk is past it.
            if number < self._cursor.segment and (number != listed[-1] or number < self._saved.segment):
                self._delete(number)
        if self._saved != self._cursor:  # There may be room now.
            self._save()

    def _save(self) -> None:
        try:
            save_cursor(self.slot, self._cursor)
        except OSError as error:
            if not self._complained:
                _log.warning("no room for the cursor of %s (%s): a crash now ships records twice", self.slot, error)
            self._complained = True
        else:
            self._saved, self._complained = self._cursor, False

    def _walk(self, start: Position) -> Iterator[tuple[Spooled | None, Position]]:
        """Each record from `start` on with the place behind it; None with a place that has nothing before it."""
        listed = numbers(self.slot)
        # A file made while a folder is listed may be missed, with later ones seen: of these only, all are listed now.
        listed = [number for number in numbers(self.slot) if listed and number <= listed[-1]]
        for number in listed:
            if number < start.segment:
                continue
            place = start if number == start.segment else Position(number, 0, 0)
            finished = number != listed[-1] or not has_owner(self.slot)  # Asked before reading: it cannot grow then.
            with contextlib.suppress(FileNotFoundError), SegmentFile(segment_path(self.slot, number)) as file:
                for frame, records in self._frames(file, number, place.offset, finished):
                    yield from _spooled(number, frame, records, place)
                    place = Position(number, frame.end, 0)
            yield None, Position(number + 1, 0, 0) if finished else place

    def _frames(self, file: SegmentFile, number: int, at: int, finished: bool) -> Iterator[tuple[Frame, list[Record]]]:
        """The good frames from `at` to the end."""
        while True:
            frame = file.frame(at)
            if frame is None and at >= file.size():
                return
            if frame is None and file.is_torn(at):
                if finished:
                    self._torn[number] = file.size() - at
                return
            if frame is None and not finished:  # A half-written record may just have been taken back under our eyes.
                time.sleep(_SETTLE_SECONDS)
                file.forget()
                if file.frame(at) is not None or file.is_torn(at):
                    continue
            records = self._opened(frame) if frame is not None else None
            if frame is not None and records is not None:
                yield frame, records
                at = frame.end
                continue
            self._set_aside(number, at)
            following = frame.end if frame is not None else file.find_frame(at + 1)
            if following is None:
                return
            at = following

    def _opened(self, frame: Frame) -> list[Record] | None:
        try:
            return unpack(frame.sealed, self._cipher)
        except DecryptionKeyMissing:  # An operator's mistake, not the frame's: nothing may be skipped because of it.
            raise
        except DecryptionFailed:
            return None

    def _set_aside(self, number: int, at: int) -> None:
        if number in self._damaged:
            return
        self._damaged.add(number)
        path = segment_path(self.slot, number)
        _log.error(
            "%s was changed at byte %d: at least one record there cannot be read. The others are shipped, and the file"
            " is kept as %s until you delete it",
            path,
            at,
            path.with_suffix(QUARANTINE).name,
        )
        with contextlib.suppress(OSError):  # Made at once, so that a crash does not forget; else `_delete` renames.
            os.link(path, path.with_suffix(QUARANTINE))

    def _delete(self, number: int) -> None:
        path = segment_path(self.slot, number)
        with contextlib.suppress(FileNotFoundError):
            if number in self._damaged and not path.with_suffix(QUARANTINE).exists():
                path.rename(path.with_suffix(QUARANTINE))
            else:
                path.unlink()


def _spooled(
    number: int, frame: Frame, records: list[Record], start: Position
) -> Iterator[tuple[Spooled | None, Position]]:
    for index, record in enumerate(records, 1):
        if frame.start == start.offset and index <= start.record:
            continue
        end = Position(number, frame.end, 0) if index == len(records) else Position(number, frame.start, index)
        yield Spooled(record, frame.appended_at, end), end
