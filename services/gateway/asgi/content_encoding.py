"""Unpacks bodies that clients send as gzip, within the limits of plain ones. Other codings are refused by name.

OpenTelemetry's exporters use it, and clients and proxies that are set to it. vLLM takes none.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

from shared.http import HttpError

_GZIP = 16 + zlib.MAX_WBITS
_MAX_SHOWN = 50
_STEP_BYTES = 1024 * 1024
"""Unpacked at once, before its size is counted."""


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
    """Return what is in a gzip body, unpacked in threads: zlib drops the GIL.

    `count` gets the size so far before more is unpacked, and may raise: a body may unpack to a thousand times its size.
    Raises HttpError 400 for what is not one whole member of gzip, 413 as soon as it has more than `max_bytes`.
    """
    unpacker, rest, pieces, size = zlib.decompressobj(_GZIP), packed, list[bytes](), 0
    while not unpacker.eof:
        try:
            piece = await asyncio.to_thread(unpacker.decompress, rest, _STEP_BYTES)
        except zlib.error as error:
            raise _malformed(error) from error
        if not piece:
            break
        rest, size = unpacker.unconsumed_tail, size + len(piece)
        if size > max_bytes:
            message = f"the request body has more than {max_bytes} bytes when unpacked, which is its limit"
            raise HttpError(413, message, "body_too_large")
        count(size)
        pieces.append(piece)
    if not unpacker.eof or unpacker.unused_data:
        raise _malformed("it is cut short, or something follows it")
    return pieces[0] if len(pieces) == 1 else await asyncio.to_thread(b"".join, pieces)


def _malformed(reason: object) -> HttpError:
    return HttpError(400, f"the request body is not whole gzip, as its header says: {reason}", "malformed_gzip")
