"""The format on disk: a slot's folder holds numbered segments, each a sequence of frames, and a cursor.

One `append` writes one frame: a header (magic, length, XXH3 of what follows, time of the append, CRC-32 of the header
itself) and one encrypted message, the records as MessagePack. The header's own checksum distinguishes a frame that a
crash cut short (its length is right, its end is missing) from a damaged one.

    000000000007.segment      frames; only the process that created it appends to it
    000000000007.quarantine   a segment with a damaged frame, for an operator to examine
    cursor                    the first position that is not shipped yet
    owner.lock, shipper.lock  flock: one writer and one shipper per slot
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec
from xxhash import xxh3_64_intdigest

from shared.privacy.encryption import OVERHEAD_BYTES, Cipher, DecryptionFailed
from shared.spool.records import Backlog, Record, SpoolPosition

MAGIC = b"RSP3"
_HEADER_FIELDS = struct.Struct("<4sIQd")  # magic, length of the ciphertext, its checksum, Unix seconds
_HEADER_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER_FIELDS.size + _HEADER_CHECKSUM.size
_RECORDS = msgspec.msgpack.Decoder(list[Record])
MAX_FRAME_BYTES = 32 << 20

SEGMENT_SUFFIX = ".segment"
QUARANTINE_SUFFIX = ".quarantine"
CURSOR_NAME = "cursor"
START = SpoolPosition(0, 0, 0)


class Header(NamedTuple):
    """The header of a frame: length and XXH3 (64 bits) of the ciphertext behind it; `appended_at` in Unix seconds."""

    length: int
    checksum: int
    appended_at: float


def pack_frame(records: Sequence[Record], cipher: Cipher, now: float) -> bytearray:
    """Pack records into a frame."""
    plain = msgspec.msgpack.encode(records)
    frame = bytearray(HEADER_BYTES + len(plain) + OVERHEAD_BYTES)
    ciphertext = memoryview(frame)[HEADER_BYTES:]
    cipher.encrypt_into(plain, ciphertext)
    fixed = _HEADER_FIELDS.pack(MAGIC, len(ciphertext), xxh3_64_intdigest(ciphertext), now)
    frame[:HEADER_BYTES] = fixed + _HEADER_CHECKSUM.pack(crc32(fixed))
    return frame


def unpack_frame(ciphertext: bytes, cipher: Cipher) -> list[Record]:
    """Return the records of a frame's ciphertext. Raises `DecryptionFailed`, `DecryptionKeyMissing`."""
    try:
        return _RECORDS.decode(cipher.decrypt(ciphertext))
    except msgspec.DecodeError as error:
        raise DecryptionFailed("A frame of the spool does not contain records.") from error


def read_header(data: bytes) -> Header | None:
    """Return the header at the start of `data`; None if it is incomplete or damaged."""
    end = _HEADER_FIELDS.size
    if len(data) < end + _HEADER_CHECKSUM.size:
        return None
    magic, length, checksum, appended_at = _HEADER_FIELDS.unpack_from(data)
    if magic != MAGIC or length > MAX_FRAME_BYTES or _HEADER_CHECKSUM.unpack_from(data, end)[0] != crc32(data[:end]):
        return None
    return Header(length, checksum, appended_at)


def segment_path(slot: Path, number: int) -> Path:
    return slot / f"{number:012d}{SEGMENT_SUFFIX}"


def segment_numbers(slot: Path, suffix: str = SEGMENT_SUFFIX) -> list[int]:
    """Return the numbers of the slot's segments in order."""
    return sorted(int(path.stem) for path in slot.iterdir() if path.suffix == suffix and path.stem.isdigit())


def next_segment_number(slot: Path) -> int:
    """Return a number that no segment had before and that is behind every cursor.

    The cursor is read after the folder, because a reader saves it before it deletes the last segment. Numbers start at
    the clock's seconds, so that none is reused even if the cursor file was lost while a reader still runs.
    """
    used = [*segment_numbers(slot), *segment_numbers(slot, QUARANTINE_SUFFIX)]
    return max(int(time.time()), *used, load_cursor(slot).segment) + 1


def load_cursor(slot: Path) -> SpoolPosition:
    """Read the cursor; the start if it cannot be read, which ships records twice rather than losing them."""
    try:
        text, stored = (slot / CURSOR_NAME).read_bytes().split(b"|")
        if int(stored) != crc32(text):
            return START
        segment, offset, record = map(int, text.split())
    except (FileNotFoundError, ValueError):
        return START
    return SpoolPosition(segment, offset, record)


def save_cursor(slot: Path, position: SpoolPosition) -> None:
    """Replace the cursor atomically. Raises OSError on a full disk; the old cursor then stays.

    Without fsync, which would stall the writer: after a power cut an older cursor ships a batch twice.
    """
    text = b" ".join(b"%d" % part for part in position)
    temporary = slot / f".{CURSOR_NAME}"
    temporary.write_bytes(b"%s|%d" % (text, crc32(text)))
    temporary.replace(slot / CURSOR_NAME)


def measure_backlog(slot: Path, cursor: SpoolPosition) -> Backlog:
    """Measure what lies behind the cursor."""
    total, oldest = 0, None
    for number in segment_numbers(slot):
        if number < cursor.segment:
            continue
        start = cursor.offset if number == cursor.segment else 0
        try:
            with segment_path(slot, number).open("rb") as file:
                size = max(0, os.fstat(file.fileno()).st_size - start)
                total += size
                if oldest is None and size:
                    first = read_header(os.pread(file.fileno(), HEADER_BYTES, start))
                    oldest = first.appended_at if first else None
        except FileNotFoundError:  # Shipped in the meantime.
            continue
    return Backlog(total, oldest)
