"""The format on disk: a slot's folder holds numbered segments, each a row of frames, and a cursor.

A frame is what one `append` wrote, whole: a header (magic, length, CRC-32 of what follows, time of the append, CRC-32
of the header itself) and one sealed message with the records. The header's own checksum tells a frame that was cut
short by a crash (its length is true, its end is missing) from one that was changed.

    000000000007.segment      frames; only the owner who made it appends to it
    000000000007.quarantine   a segment in which a frame was damaged: kept for a person to look at
    cursor                    the first place that is not shipped yet
    owner.lock, shipper.lock  flock: one writer and one shipper a slot
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from shared.privacy.encryption import Cipher, DecryptionFailed
from shared.spool.records import Position, Record

MAGIC = b"RSP1"
_FIXED = struct.Struct("<4sIId")  # magic, length of the sealed message, its CRC-32, Unix seconds
_CHECK = struct.Struct("<I")
HEADER_BYTES = _FIXED.size + _CHECK.size
_RECORD = struct.Struct("<HII")  # lengths of topic, key and value
_HEADERS = struct.Struct("<H")  # how many headers follow the value
_HEADER = struct.Struct("<HI")  # lengths of name and value
_MARK = b"\xff"
"""Before the topic of a record with headers. No text in UTF-8 begins so: records without headers lie as they always
did, and code that knows no headers takes such a frame for damaged and sets it aside, instead of misreading it."""
MAX_FRAME_BYTES = 32 << 20

SEGMENT = ".segment"
QUARANTINE = ".quarantine"
CURSOR = "cursor"
START = Position(0, 0, 0)


class Header(NamedTuple):
    """Of one frame: `length` and `check` of the sealed message behind it, `appended_at` in Unix seconds."""

    length: int
    check: int
    appended_at: float


def pack(records: Sequence[Record], cipher: Cipher, now: float) -> bytes:
    """The frame that holds `records`. Raises ValueError when one is larger than the format can say."""
    parts: list[bytes] = []
    for record in records:
        topic = record.topic.encode()
        if record.headers:
            topic = _MARK + topic
        parts += (_RECORD.pack(len(topic), len(record.key), len(record.value)), topic, record.key, record.value)
        if record.headers:
            parts += _packed(record.headers)
    sealed = cipher.encrypt(b"".join(parts))
    fixed = _FIXED.pack(MAGIC, len(sealed), crc32(sealed), now)
    return b"".join((fixed, _CHECK.pack(crc32(fixed)), sealed))


def unpack(sealed: bytes, cipher: Cipher) -> list[Record]:
    """The records of a frame. Raises `DecryptionFailed`, `DecryptionKeyMissing`."""
    data, at, records = cipher.decrypt(sealed), 0, []
    try:
        while at < len(data):
            topic, key, value = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            ends = (at + topic, at + topic + key, at + topic + key + value)
            name, parts = data[at : ends[0]], (data[ends[0] : ends[1]], data[ends[1] : ends[2]])
            at = ends[2]
            if name.startswith(_MARK):
                headers, at = _headers(data, at)
                records.append(Record(name[1:].decode(), *parts, headers))
            else:
                records.append(Record(name.decode(), *parts))
    except (struct.error, UnicodeDecodeError):
        at = -1
    if at != len(data):
        raise DecryptionFailed("A spooled frame holds something else than records.")
    return records


def _packed(headers: Sequence[tuple[str, bytes]]) -> list[bytes]:
    parts = [_HEADERS.pack(len(headers))]
    for name, value in headers:
        encoded = name.encode()
        parts += (_HEADER.pack(len(encoded), len(value)), encoded, value)
    return parts


def _headers(data: bytes, at: int) -> tuple[tuple[tuple[str, bytes], ...], int]:
    """The headers that begin at `at`, and where they end."""
    (count,) = _HEADERS.unpack_from(data, at)
    at += _HEADERS.size
    found = []
    for _ in range(count):
        name, value = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        found.append((data[at : at + name].decode(), data[at + name : at + name + value]))
        at += name + value
    return tuple(found), at


def header(data: bytes, at: int = 0) -> Header | None:
    """The header at `at`, None if there is none that is whole and right."""
    end = at + _FIXED.size
    if len(data) < end + _CHECK.size:
        return None
    magic, length, check, appended_at = _FIXED.unpack_from(data, at)
    if magic != MAGIC or length > MAX_FRAME_BYTES or _CHECK.unpack_from(data, end)[0] != crc32(data[at:end]):
        return None
    return Header(length, check, appended_at)


def segment_path(slot: Path, number: int) -> Path:
    return slot / f"{number:012d}{SEGMENT}"


def numbers(slot: Path, suffix: str = SEGMENT) -> list[int]:
    """The numbers of the slot's segments in order."""
    return sorted(int(path.stem) for path in slot.iterdir() if path.suffix == suffix and path.stem.isdigit())


def next_number(slot: Path) -> int:
    """A number that no segment had before and no cursor has passed.

    The cursor is read after the folder, because a reader writes it before it deletes the last segment. Numbers start
    at the time, so that even a lost cursor makes none come again under a reader that still knows it.
    """
    used = [*numbers(slot), *numbers(slot, QUARANTINE)]
    return max(int(time.time()), *used, load_cursor(slot).segment) + 1


def load_cursor(slot: Path) -> Position:
    """The cursor; the start where none can be read: then records are shipped twice, not lost."""
    try:
        text, check = (slot / CURSOR).read_bytes().split(b"|")
        if int(check) != crc32(text):
            return START
        segment, offset, record = map(int, text.split())
    except (FileNotFoundError, ValueError):
        return START
    return Position(segment, offset, record)


def save_cursor(slot: Path, position: Position) -> None:
    """Replace the cursor as a whole. Raises OSError on a full disk; the old one is then still there.

    Not fsynced: after a power cut an older cursor ships a batch twice, and an fsync here would stall the writer.
    """
    text = b" ".join(b"%d" % part for part in position)
    fresh = slot / f".{CURSOR}"
    fresh.write_bytes(b"%s|%d" % (text, crc32(text)))
    fresh.replace(slot / CURSOR)


def unshipped(slot: Path, cursor: Position) -> tuple[int, float | None]:
    """Bytes from the cursor on, and when the first frame there was appended."""
    total, oldest = 0, None
    for number in numbers(slot):
        if number < cursor.segment:
            continue
        start = cursor.offset if number == cursor.segment else 0
        try:
            with segment_path(slot, number).open("rb") as file:
                rest = max(0, os.fstat(file.fileno()).st_size - start)
                total += rest
                if oldest is None and rest:
                    first = header(os.pread(file.fileno(), HEADER_BYTES, start))
                    oldest = first.appended_at if first else None
        except FileNotFoundError:  # Shipped while we looked.
            continue
    return total, oldest
