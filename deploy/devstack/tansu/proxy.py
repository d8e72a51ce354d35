"""A proxy before tansu that lets one produce request through at a time.

tansu 0.6 gives a batch its offset first and stores it afterwards. Of two batches produced at the same time, the second
may be stored first; a consumer that reads it then continues behind it, and never reads the first, although its
producer got an acknowledgement. With one produce request at a time, a batch is stored before the next one gets an
offset, so offsets become readable in their order.

A request that its client gave up on is waited for all the same: tansu may still store its batch. Producers ask for an
acknowledgement, as all of Ratchet's do: one that asks for none holds up the others until it disconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 128 * 1024**2
"""Of one request or response; Kafka's own limit is 100 MiB (`socket.request.max.bytes`)."""


class ProtocolError(Exception):
    """A frame that is not one of Kafka's protocol."""


class ProduceProxy:
    """Forwards connections to the broker at `host`:`port`. All of them share one lock for their produce requests."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._producing = asyncio.Lock()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one client's connection until one of the two sides closes it, or the process ends."""
        with contextlib.suppress(asyncio.CancelledError):  # asyncio would log a stack trace for it.
            await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            broker_reader, broker_writer = await asyncio.open_connection(*self._address)
        except OSError as error:
            log.warning("the broker does not accept connections: %s", error)
            writer.close()
            return
        connection = _Connection(self._producing, (reader, writer), (broker_reader, broker_writer))
        try:
            await connection.run()
        finally:
            for side in (broker_writer, writer):
                side.close()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    """One client's connection. `_produced` is set unless a produce request of it waits for its response."""

    def __init__(self, producing: asyncio.Lock, client: Streams, broker: Streams) -> None:
        self._producing = producing
        self._client, self._broker = client, broker
        self._produced = asyncio.Event()
        self._produced.set()
        self._correlation_id = b""

    async def run(self) -> None:
        responses = asyncio.create_task(self._forward_responses())
        requests = asyncio.create_task(self._forward_requests())
        try:
            await asyncio.wait((requests, responses), return_when=asyncio.FIRST_COMPLETED)
            if not responses.done():  # The client left: its last produce request must still end.
                done = asyncio.create_task(self._produced.wait())
                await asyncio.wait((done, responses), return_when=asyncio.FIRST_COMPLETED)
                done.cancel()
        finally:
            for task in (requests, responses):
                task.cancel()
            for result in await asyncio.gather(requests, responses, return_exceptions=True):
                if isinstance(result, ProtocolError):
                    log.warning("connection closed: %s", result)
            self._finish_produce()

    async def _forward_requests(self) -> None:
        reader, (_, writer) = self._client[0], self._broker
        with contextlib.suppress(OSError):
            while (frame := await read_frame(reader)) is not None:
                if frame[:2] == b"\x00\x00":
                    await self._begin_produce(frame)
                writer.write(len(frame).to_bytes(4, "big"))
                writer.write(frame)
                await writer.drain()

    async def _begin_produce(self, frame: bytes) -> None:
        """Wait for this connection's turn to produce."""
        await self._producing.acquire()
        self._produced.clear()
        self._correlation_id = frame[4:8]

    async def _forward_responses(self) -> None:
        reader, (_, writer) = self._broker[0], self._client
        with contextlib.suppress(OSError):
            while (frame := await read_frame(reader)) is not None:
                if not self._produced.is_set() and frame[:4] == self._correlation_id:
                    self._finish_produce()
                if not writer.is_closing():
                    writer.write(len(frame).to_bytes(4, "big"))
                    writer.write(frame)
                    with contextlib.suppress(OSError):  # The client left; a produce request may still wait.
                        await writer.drain()

    def _finish_produce(self) -> None:
        if not self._produced.is_set():
            self._produced.set()
            self._producing.release()


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """Return the next request or response without its size, or None at the end. Raises ProtocolError."""
    try:
        size = int.from_bytes(await reader.readexactly(4), "big", signed=True)
        if not 8 <= size <= MAX_FRAME_BYTES and size != 4:
            raise ProtocolError(f"a frame of {size} bytes: not Kafka's protocol, or over {MAX_FRAME_BYTES} bytes")
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        return None
