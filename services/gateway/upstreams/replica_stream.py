"""A streamed response of one of several replicas."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from services.gateway.upstreams.http_client import ResponseStream
from services.gateway.upstreams.pool import ModelReplica
from services.gateway.upstreams.upstream import UpstreamFailed

OpenStream = tuple[ResponseStream, bytes]
"""A 200 response and the first piece of its body."""
_ErrorOf = Callable[[ModelReplica, OSError], UpstreamFailed]


class ReplicaStream:
    """A stream of a replica. `open_stream` returns it with its first piece; `error_of` converts later errors."""

    def __init__(
        self, open_stream: Callable[[], Awaitable[tuple[OpenStream, ModelReplica]]], error_of: _ErrorOf
    ) -> None:
        self._open_stream = open_stream
        self._error_of = error_of
        self._first: bytes | None = None
        self._stream: ResponseStream
        self._replica: ModelReplica

    async def __aenter__(self) -> Self:
        (self._stream, self._first), self._replica = await self._open_stream()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._stream.finish()
        finally:
            self._replica.outstanding -= 1
            self._stream.close()  # Closes the connection, unless the stream was read to its end.

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            piece = await self._stream.read_piece()
        except OSError as error:
            raise self._error_of(self._replica, error) from error
        if not piece:
            raise StopAsyncIteration
        return piece
