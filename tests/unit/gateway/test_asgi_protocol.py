"""The limit of a request head, on a real socket."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest
import uvicorn
from fastapi import FastAPI, Request

from services.gateway.asgi.protocol import MAX_HEAD_BYTES, HttpProtocol
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
async def port() -> AsyncIterator[int]:
    app = FastAPI()

    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    server = uvicorn.Server(uvicorn.Config(app, port=0, http=HttpProtocol, log_level="critical"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


def request(head: bytes = b"", body: bytes = b"x") -> bytes:
    return b"POST /size HTTP/1.1\r\nhost: g\r\n%scontent-length: %d\r\n\r\n%s" % (head, len(body), body)


async def send(port: int, *pieces: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to pieces that leave one by one."""
    head, body = await answer(port, *pieces)
    return int(head.split()[1]), body


async def answer(port: int, *pieces: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer to pieces that leave one by one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.005)
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return head, await reader.readexactly(length)
    finally:
        writer.close()


@pytest.mark.parametrize("body", [0, 1, 3 * MAX_HEAD_BYTES])
async def test_usual_heads_are_accepted_with_any_body(port: int, body: int) -> None:
    large = b"x-a: %s\r\n" % (b"v" * (MAX_HEAD_BYTES // 2))
    for head in (b"", large):
        assert await send(port, request(head, b"b" * body)) == (200, b"%d" % body)


async def test_a_head_in_pieces_passes_up_to_the_limit(port: int) -> None:
    whole = request(b"x-a: %s\r\n" % (b"v" * (MAX_HEAD_BYTES - 1_000)))
    pieces = [whole[at : at + 10_000] for at in range(0, len(whole), 10_000)]
    assert await send(port, *pieces) == (200, b"1")


@pytest.mark.parametrize("name", [b"authorization: Bearer rk_", b"x-a: "])
async def test_a_head_over_the_limit_is_refused_in_openais_format(port: int, name: bytes) -> None:
    status, body = await send(port, request(b"%s%s\r\n" % (name, b"v" * (MAX_HEAD_BYTES + 1))))
    assert (status, json.loads(body)["error"]["code"]) == (431, "headers_too_large")


async def test_an_endless_head_is_refused_while_it_arrives(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /size HTTP/1.1\r\nx-a: " + b"v" * (MAX_HEAD_BYTES + 1))
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer = await reader.read()  # Until the gateway closes the connection.
    assert answer.startswith(b"HTTP/1.1 431 ")
    writer.close()


async def test_many_small_headers_and_a_long_address_count_too(port: int) -> None:
    many = b"".join(b"x-%d: v\r\n" % number for number in range(12_000))
    assert (await send(port, request(many)))[0] == 431
    assert (await send(port, b"GET /%s HTTP/1.1\r\nhost: g\r\n\r\n" % (b"p" * (MAX_HEAD_BYTES + 1))))[0] == 431


async def test_the_limit_is_per_request_not_per_connection(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(4):
        writer.write(request(b"x-a: %s\r\n" % (b"v" * (MAX_HEAD_BYTES // 2))))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and await reader.readexactly(1) == b"1"
    writer.close()


async def test_malformed_http_gets_a_400_in_openais_format(port: int) -> None:
    status, body = await send(port, b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
    assert (status, json.loads(body)["error"]["code"]) == (400, "malformed_http")


@pytest.mark.parametrize("pieces", [b"nonsense\r\n\r\n", request(b"x-a: %s\r\n" % (b"v" * (MAX_HEAD_BYTES + 1)))])
async def test_an_answer_to_a_head_that_cannot_be_read_has_an_id_of_the_gateways_own(port: int, pieces: bytes) -> None:
    ids = set()
    for _ in range(2):
        head, _ = await answer(port, pieces)
        ids |= set(re.findall(rb"\r\nx-request-id: ([0-9a-f]{32})\r\n", head))
    assert len(ids) == 2
