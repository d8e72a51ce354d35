"""Unpacks bodies that clients send as gzip, within the limits of plain ones. Other codings are refused by name.

OpenTelemetry's exporters use it, and clients and proxies that are set to it. vLLM takes none.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import zlib
from collections.abc import Callable

from shared.http import HttpError

_SMALL_BYTES = 64 * 1024
"""Unpacking as much takes less time than a thread would cost."""
_STEP_BYTES = 1024**2
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
    reader = gzip.GzipFile(fileobj=io.BytesIO(packed))
    pieces, size, step = list[bytes](), 0, _SMALL_BYTES
    try:
        piece = reader.read(step)
        while piece:
            size += len(piece)
            if size > max_bytes:
                message = f"the request body has more than {max_bytes} bytes when unpacked, which is its limit"
                raise HttpError(413, message, "body_too_large")
            count(size)
            pieces.append(piece)
            if len(piece) < step:  # Only the last one is.
                break
            step = _STEP_BYTES
            piece = await asyncio.to_thread(reader.read, step)  # zlib drops the GIL.
    except (OSError, EOFError, zlib.error) as error:
        raise HttpError(
            400, f"the request body is not whole gzip, as its header says: {error}", "malformed_gzip"
        ) from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
