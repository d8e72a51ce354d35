"""What is written to the client's connection, in how many pieces."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from services.gateway.asgi.protocol import HttpProtocol

LENGTH = (b"content-length", b"2")


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


async def answered(*messages: dict[str, Any], method: bytes = b"POST", head: bytes = b"") -> FakeTransport:
    """What is written when the application sends these messages."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    config = uvicorn.Config(app, log_level="critical")
    config.load()
    protocol = HttpProtocol(config, ServerState(), {})
    transport = FakeTransport()
    protocol.connection_made(transport)
    protocol.data_received(b"%b / HTTP/1.1\r\nhost: g\r\n%bcontent-length: 1\r\n\r\nx" % (method, head))
    for _ in range(5):
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    return transport


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"x-a", b"1"), *headers]}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_a_whole_answer_is_one_write() -> None:
    (sent,) = (await answered(start(LENGTH), body(b"ok"))).written
    assert sent == b"HTTP/1.1 200 OK\r\nx-a: 1\r\ncontent-length: 2\r\n\r\nok"


async def test_a_streams_head_leaves_with_its_first_piece() -> None:
    transport = await answered(start(), body(b"one", more=True), body(b"two", more=True), body(b""))
    assert transport.written == [
        b"HTTP/1.1 200 OK\r\nx-a: 1\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n",
    ]  # fmt: skip


@pytest.mark.parametrize("last", [b"", b"end"])
async def test_a_stream_of_one_piece_is_one_write(last: bytes) -> None:
    (sent,) = (await answered(start(), body(last))).written
    assert sent.endswith(b"chunked\r\n\r\n" + (b"3\r\nend\r\n" if last else b"") + b"0\r\n\r\n")


@pytest.mark.parametrize("how", [{"head": b"connection: close\r\n"}, {}])
async def test_an_answer_says_when_the_connection_closes_after_it(how: dict[str, bytes]) -> None:
    own = () if how else ((b"connection", b"close"),)
    transport = await answered(start(LENGTH, *own), body(b"ok"), **how)
    assert b"".join(transport.written).count(b"connection: close\r\n") == 1
    assert transport.closed


async def test_an_answer_to_head_has_no_body() -> None:
    (sent,) = (await answered(start(LENGTH), body(b"ok"), method=b"HEAD")).written
    assert sent.endswith(b"content-length: 2\r\n\r\n")


async def test_an_answer_of_a_declared_length_may_come_in_pieces() -> None:
    sent = b"".join((await answered(start(LENGTH), body(b"o", more=True), body(b"k"))).written)
    assert sent.endswith(b"content-length: 2\r\n\r\nok")


async def test_a_status_of_no_standard_is_passed_on() -> None:
    (sent,) = (await answered(start(LENGTH, status=529), body(b"ok"))).written
    assert sent.startswith(b"HTTP/1.1 529 \r\n")


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb"])
async def test_a_header_with_a_line_break_is_never_sent(value: bytes) -> None:
    transport = await answered(start((b"x-b", value), LENGTH), body(b"ok"))
    (sent,) = transport.written
    assert sent.startswith(b"HTTP/1.1 500 ") and b"x-b" not in sent and transport.closed


@pytest.mark.parametrize("data", [b"o", b"too long"])
async def test_a_wrong_content_length_closes_the_connection(data: bytes) -> None:
    assert (await answered(start(LENGTH), body(data))).closed


async def test_an_application_that_sends_a_start_without_a_body_is_a_500() -> None:
    (sent, *_) = (await answered(start(LENGTH))).written
    assert sent.startswith(b"HTTP/1.1 500 ")
