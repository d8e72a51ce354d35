"""Unpacks bodies that clients send as gzip, within the limits of plain ones. Other codings are refused by name.

OpenTelemetry's exporters use it, and clients and proxies that are set to it. vLLM takes none.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator

from shared.http import HttpError

_SMALL_BYTES = 64 * 1024
"""A step of a body of as much takes less time than a thread would cost."""
_STEP_BYTES = 256 * 1024
_MAX_MEMBERS = 1_000
"""Clients send one; each more costs time, also if nothing is in it."""
_GZIP = 16 + zlib.MAX_WBITS
_MAX_SHOWN = 50


def is_gzip(coding: bytes) -> bool:
    """Return True if a `content-encoding` says gzip, False for a plain body. Raises HttpError 415."""
    if not coding or (coding := coding.strip().lower()) in (b"", b"identity"):
        return False
    if coding in (b"gzip", b"x-gzip"):
        return True
    shown = coding[:_MAX_SHOWN].decode("latin-1")
    message = f"the content-encoding {shown!r} of the request body is not supported: send it plain, or as gzip"
    raise HttpError(415, message, "content_encoding", headers={"accept-encoding": "gzip"})


async def unpack(packed: bytes, max_bytes: int, count: Callable[[int], None]) -> bytes:
    """Return what is in a gzip body. `count` gets the size so far before more is unpacked, and may raise.

    Raises HttpError 400 for what is no gzip, 413 as soon as it has more than `max_bytes`.
    """
    unpacking, pieces, size = _pieces_of(packed), list[bytes](), 0
    try:
        while True:
            if len(packed) <= _SMALL_BYTES and size < _STEP_BYTES:
                piece = next(unpacking, b"")
            else:
                piece = await asyncio.to_thread(next, unpacking, b"")  # zlib drops the GIL.
            if not piece:
                break
            size += len(piece)
            if size > max_bytes:
                message = f"the request body has more than {max_bytes} bytes when unpacked, which is its limit"
                raise HttpError(413, message, "body_too_large")
            count(size)
            pieces.append(piece)
    except (EOFError, zlib.error) as error:
        raise HttpError(
            400, f"the request body is not whole gzip, as its header says: {error}", "malformed_gzip"
        ) from error
    if len(pieces) == 1:
        return pieces[0]
    return b"".join(pieces) if size <= _STEP_BYTES else await asyncio.to_thread(b"".join, pieces)


def _pieces_of(packed: bytes) -> Iterator[bytes]:
    """Yield what is in a gzip body, at most `_STEP_BYTES` at a time. Raises zlib.error, EOFError.

    The standard library's `gzip` reads headers, padding and members of no bytes one by one in Python: for megabytes of
    them it held the event loop up for seconds.
    """
    rest, members = memoryview(packed), 0
    while rest:
        members += 1
        if members > _MAX_MEMBERS:
            raise zlib.error(f"it has more than {_MAX_MEMBERS} members")
        unpacker = zlib.decompressobj(_GZIP)
        while not unpacker.eof:
            given = rest[:_STEP_BYTES]
            piece = unpacker.decompress(given, _STEP_BYTES)
            left = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            rest = rest[len(given) - len(left) :]
            if piece:
                yield piece
            elif not given:
                raise EOFError("it is cut short")
