"""One produce request at a time reaches the broker, whatever the clients do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from kafka.protocol.producer import ProduceRequest

from deploy.devstack.config import HOST
from deploy.devstack.tansu.proxy import MAX_FRAME_BYTES, ProduceProxy, ProtocolError, read_frame
from tests.waiting import PATIENCE_SECONDS

FETCH = b"\x00\x01\x00\x0b"
WORK_SECONDS = 0.05


def produce(correlation_id: int, acks: int = -1, version: int = 9, **fields: object) -> bytes:
    """Return a produce request without its size, as kafka-python encodes it."""
    client_id = fields.pop("client_id", "test")
    values = {"transactional_id": None, "timeout_ms": 1000, "topic_data": [], **fields}
    request = ProduceRequest(version=version, acks=acks, **values)
    request.with_header(correlation_id=correlation_id, client_id=client_id)
    return bytes(request.encode(header=True))


def fetch(correlation_id: int) -> bytes:
    return FETCH + correlation_id.to_bytes(4, "big") + b"\xff\xff"


@dataclass
class Broker:
    """Answers each request after a while with its correlation id; dies at a request of `deadly`."""

    deadly: bytes = b""
    received: list[bytes] = field(default_factory=list)
    producing: int = 0
    most_producing: int = 0
    produced: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (frame := await read_frame(reader)) is not None:
            self.received.append(frame)
            if frame == self.deadly:
                break
            if frame[:2] == b"\x00\x00":
                self.producing += 1
                self.most_producing = max(self.most_producing, self.producing)
                await asyncio.sleep(WORK_SECONDS)
                self.producing -= 1
                self.produced += 1
            with contextlib.suppress(OSError):
                writer.write(b"\x00\x00\x00\x04" + frame[4:8])
                await writer.drain()
        writer.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    def send(self, frame: bytes) -> None:
        self.writer.write(len(frame).to_bytes(4, "big") + frame)

    async def answer(self) -> int | None:
        """Return the correlation id of the next response; None if the connection was closed."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            frame = await read_frame(self._reader)
        return None if frame is None else int.from_bytes(frame[:4], "big")


@asynccontextmanager
async def clients(broker: Broker, count: int) -> AsyncIterator[Sequence[Client]]:
    """Clients of a proxy before the broker."""
    async with await asyncio.start_server(broker.serve, HOST, 0) as behind:
        proxy = ProduceProxy(HOST, behind.sockets[0].getsockname()[1])
        async with await asyncio.start_server(proxy.serve, HOST, 0) as before:
            port = before.sockets[0].getsockname()[1]
            opened = [Client(*await asyncio.open_connection(HOST, port)) for _ in range(count)]
            yield opened
            for client in opened:
                client.writer.close()


async def test_requests_of_several_clients_are_produced_one_at_a_time() -> None:
    broker = Broker()
    async with clients(broker, 4) as opened:
        for number, client in enumerate(opened):
            client.send(produce(number))
            client.send(produce(100 + number))
        for number, client in enumerate(opened):
            assert [await client.answer(), await client.answer()] == [number, 100 + number]
    assert (broker.produced, broker.most_producing) == (8, 1)


async def test_other_requests_do_not_wait_for_a_produce_request() -> None:
    broker = Broker()
    async with clients(broker, 2) as (producer, consumer):
        producer.send(produce(1))
        while not broker.producing:
            await asyncio.sleep(0.001)
        consumer.send(fetch(2))
        assert await consumer.answer() == 2
        assert broker.producing == 1, "still at work"
        assert await producer.answer() == 1


async def test_the_request_of_a_client_that_left_ends_before_the_next_begins() -> None:
    broker = Broker()
    async with clients(broker, 2) as (impatient, patient):
        impatient.send(produce(1))
        while not broker.producing:
            await asyncio.sleep(0.001)
        impatient.writer.close()
        patient.send(produce(2))
        assert await patient.answer() == 2
    assert (broker.produced, broker.most_producing) == (2, 1)


async def test_a_broker_that_closes_the_connection_holds_nobody_up() -> None:
    deadly = produce(1)
    broker = Broker(deadly)
    async with clients(broker, 2) as (unlucky, lucky):
        unlucky.send(deadly)
        assert await unlucky.answer() is None
        lucky.send(produce(2))
        assert await lucky.answer() == 2


async def test_what_is_not_kafkas_protocol_closes_its_connection_only() -> None:
    broker = Broker()
    async with clients(broker, 2) as (stranger, client):
        stranger.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await stranger.answer() is None
        client.send(produce(2))
        assert await client.answer() == 2
    assert len(broker.received) == 1


async def test_without_a_broker_connections_are_closed() -> None:
    async with await asyncio.start_server(ProduceProxy(HOST, 1).serve, HOST, 0) as server:
        reader, writer = await asyncio.open_connection(HOST, server.sockets[0].getsockname()[1])
        assert await reader.read() == b""
        writer.close()


async def test_a_frame_over_the_limit_is_an_error() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="over"):
        await read_frame(reader)
