"""Lets a request in: checks its API key before a byte of its body is read, then reads the body within the limits.

Bytes of bodies are counted while they are in flight, from when they arrive until the answer has left, per worker and
per application. The memory that a body takes is a few times its size: the bytes, the parsed object, what is sent on.
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect

from services.gateway.asgi.content_encoding import is_gzip, unpack
from services.gateway.asgi.exchange import Headers, Receive
from services.gateway.asgi.in_flight import BytesInFlight, HeldBytes
from services.gateway.auth.grants import AccessControl, Grant
from services.gateway.settings import BodyLimits
from shared.http import HttpError

_LARGE_BYTES = 1024**2


class AdmittedBody(NamedTuple):
    grant: Grant
    body: bytes


class RequestAdmission:
    def __init__(self, access: AccessControl, limits: BodyLimits) -> None:
        self._access = access
        self.limits = limits
        self.in_flight = BytesInFlight(limits.worker, limits.app)
        self.grant = access.grant
        """Returns what a request with these headers may do. Raises HttpError 401, 429."""

    def hold(self) -> HeldBytes:
        """Return the count of a request's bytes, to be released when the request ends."""
        return HeldBytes(self.in_flight)

    @asynccontextmanager
    async def body_of(
        self, headers: Headers, receive: Receive, max_bytes: int | None = None, max_unpacked: int | None = None
    ) -> AsyncIterator[AdmittedBody]:
        """The body of a request that is not hot, counted for the length of a `with`.

        Raises HttpError 401 and as `read` does; ClientDisconnect.
        """
        grant = self.grant(headers)
        held = self.hold()
        try:
            body = await self.read(grant, held, headers, receive, max_bytes, max_unpacked)
            if body is None:
                raise ClientDisconnect
            yield AdmittedBody(grant, body)
        finally:
            held.release()

    async def read(
        self,
        grant: Grant,
        held: HeldBytes,
        headers: Headers,
        receive: Receive,
        max_bytes: int | None = None,
        max_unpacked: int | None = None,
    ) -> bytes | None:
        """Read a body, and unpack it if it is gzip; None if the client left before its end.

        `max_unpacked`: by default as `max_bytes`. A declared length is counted before the rest of the body arrives. The
        key is charged once, when the size is known or the body refused: what is over its limit is granted in one piece.
        Raises HttpError 400, 408, 413, 415, 429, 503.
        """
        held.app = grant.app
        max_bytes = max_bytes or self.limits.body
        declared, coding = _length_and_coding(headers)
        packed = is_gzip(coding)
        if declared is not None and declared > max_bytes:
            raise _too_large(max_bytes)
        message = await self._next(receive)
        if message["type"] == "http.disconnect":
            return None
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        size = declared if more and declared is not None else len(body)
        if size > max_bytes:
            raise _too_large(max_bytes)
        held.grow_to(size)
        is_known = not packed and (declared is not None or not more)
        if is_known:
            self._access.charge(grant, size)
        try:
            if more:
                pieces = await self._read_rest(body, held, receive, max_bytes)
                if pieces is None:
                    return None
                # Joining drops the GIL, so that in a thread it holds nobody up.
                body = await asyncio.to_thread(b"".join, pieces) if held.size > _LARGE_BYTES else b"".join(pieces)
            if packed:
                body = await unpack(body, max_unpacked or max_bytes, held.grow_to)
        finally:
            if not is_known:  # What is refused, too: else a key could send garbage past its limit.
                self._access.charge(grant, held.size)
        return body

    async def _read_rest(self, first: bytes, held: HeldBytes, receive: Receive, max_bytes: int) -> list[bytes] | None:
        """Return the pieces of a body; None if the client left before its end."""
        pieces, size, more = [first], len(first), True
        while more:
            message = await self._next(receive)
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if size > max_bytes:
                raise _too_large(max_bytes)
            held.grow_to(size)
            pieces.append(piece)
            more = message.get("more_body", False)
        return pieces

    async def _next(self, receive: Receive) -> Any:
        """Return the next message of a body. Raises HttpError 408 if none comes in time.

        What has come already, as all of a usual request has, costs no timer.
        """
        receiving = receive().__await__()
        try:
            awaited = next(receiving)
        except StopIteration as received:
            return received.value
        try:
            async with asyncio.timeout(self.limits.silence):
                return await _go_on(receiving, awaited)
        except TimeoutError as error:
            reason = f"nothing of the request body came for {self.limits.silence:g} s"
            raise HttpError(408, reason, "body_timeout") from error


@types.coroutine
def _go_on(started: Generator[Any, Any, Any], awaited: Any) -> Generator[Any, Any, Any]:
    """Await the rest of what was started and now waits for `awaited`."""
    with contextlib.closing(started):
        yield awaited
        return (yield from started)


def _length_and_coding(headers: Headers) -> tuple[int | None, bytes]:
    """The declared length of a body, and how it is encoded; several codings are a list in their order."""
    length, coding = None, b""
    for name, value in headers:
        if name == b"content-length":
            if value.isdigit():
                length = int(value[:19])  # Longer ones are as impossible as the first 19 digits, and slow to parse.
        elif name == b"content-encoding":
            coding = b"%b, %b" % (coding, value) if coding else value
    return length, coding


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(413, f"the request body is over the limit of {max_bytes} bytes", "body_too_large")
