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
    """Return what is in a gzip body, unpacked in a thread: zlib drops the GIL. `count` gets its size, and may raise.

    Raises HttpError 400 for what is not one whole member of gzip, 413 for more than `max_bytes`: it is unpacked no
    further.
    """
    unpacker = zlib.decompressobj(_GZIP)
    try:
        body = await asyncio.to_thread(unpacker.decompress, packed, max_bytes + 1)
    except zlib.error as error:
        raise _malformed(error) from error
    if len(body) > max_bytes:
        message = f"the request body has more than {max_bytes} bytes when unpacked, which is its limit"
        raise HttpError(413, message, "body_too_large")
    if not unpacker.eof or unpacker.unused_data:
        raise _malformed("it is cut short, or something follows it")
    count(len(body))
    return body


def _malformed(reason: object) -> HttpError:
    return HttpError(400, f"the request body is not whole gzip, as its header says: {reason}", "malformed_gzip")
