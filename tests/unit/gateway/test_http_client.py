"""The HTTP client against scripted servers that answer byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.gateway.upstreams.http_client import (
    ConnectFailed,
    ConnectionLost,
    NoFreeConnection,
    StreamIdle,
    UpstreamClient,
    UpstreamResponse,
)
from shared.errors import ConfigurationError
from tests.unit.gateway.certificates import self_signed
from tests.unit.gateway.conftest import no_free_files
from tests.waiting import PATIENCE_SECONDS

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Server:
    """Answers each request with the pieces of `script`; `None` closes the connection."""

    script: Sequence[bytes | None] = (OK,)
    pause: float = 0.0
    url: str = ""
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    sent: int = 0
    open_now: int = 0
    max_open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_now += 1
        self.max_open = max(self.max_open, self.open_now)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._answer(reader, writer)
        self.open_now -= 1
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            self.requests.append(head + await reader.readexactly(length))
            for piece in self.script:
                if piece is None:
                    return
                writer.write(piece)
                await writer.drain()
                self.sent += len(piece)
                await asyncio.sleep(self.pause)


Start = Callable[..., Awaitable[UpstreamClient]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a server and return a client of it."""
    opened: list[tuple[asyncio.Server, UpstreamClient]] = []

    async def _start(server: Server, limit: int = 10, path: str = "", wait_seconds: float = 60.0) -> UpstreamClient:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        server.url = f"127.0.0.1:{port}"
        slots = asyncio.Semaphore(limit)
        client = UpstreamClient(f"http://{server.url}{path}", {"x-key": "k"}, PATIENCE_SECONDS, slots, wait_seconds)
        opened.append((listening, client))
        return client

    yield _start
    for listening, client in opened:
        client.close()
        listening.close()


async def ask(client: UpstreamClient, body: bytes = b"{}", seconds: float = 60.0) -> UpstreamResponse:
    return await client.request("POST", "/v1/x", body, seconds)


async def test_a_request_has_its_headers_and_its_connection_is_reused(start: Start) -> None:
    client = await start(server := Server(), path="/base/")
    for body in (b"one", b"two" * 50_000):
        assert await ask(client, body) == (200, {b"content-length": b"5"}, b"hello")
    head = f"POST /base/v1/x HTTP/1.1\r\nhost: {server.url}\r\nx-key: k\r\ncontent-length: 3\r\n\r\none"
    assert server.requests[0].decode() == head
    assert server.requests[1].endswith(b"twotwo")
    assert server.connections == 1


@pytest.mark.parametrize(
    ("script", "body"),
    [
        ((CHUNKED, b"3\r\nhel\r\n", b"2\r\nlo\r\n0\r\n\r\n"), b"hello"),
        ((OK[:20], OK[20:45], OK[45:]), b"hello"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", OK), b"hello"),
        ((b"HTTP/1.1 200 OK\r\n\r\n", b"to the end", None), b"to the end"),
        ((b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",), b"hello"),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",), b""),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), b""),
    ],
)
async def test_a_response_is_read_whole_however_it_is_framed(
    start: Start, script: Sequence[bytes | None], body: bytes
) -> None:
    client = await start(Server(script, pause=0.01))
    for _ in range(2):
        assert (await ask(client)).body == body


@pytest.mark.parametrize(
    "script",
    [
        (None,),
        (OK[:20], None),
        (OK[:-2], None),
        (CHUNKED, b"3\r\nhel\r\n", None),
        (b"SSH-2.0-OpenSSH_9.2\r\n",),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",),
        (CHUNKED, b"zz\r\n"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",),
    ],
)
async def test_a_broken_response_loses_its_connection_and_the_next_request_gets_a_new_one(
    start: Start, script: Sequence[bytes | None]
) -> None:
    client = await start(server := Server(script, pause=0.01))
    with pytest.raises(ConnectionLost):
        await ask(client)
    server.script = (OK,)
    assert (await ask(client)).body == b"hello"
    assert server.connections == 2


async def test_a_connection_that_its_server_closed_while_idle_is_not_reused(start: Start) -> None:
    client = await start(server := Server((OK, None)))
    for _ in range(3):
        assert (await ask(client)).body == b"hello"
        await asyncio.sleep(0.05)
    assert server.connections == 3


async def test_an_unsolicited_response_never_answers_the_next_request(start: Start) -> None:
    evil = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-evil: 1\r\n\r\nevil"
    for script in ((OK + evil,), (OK, evil)):
        client = await start(server := Server(script, pause=0.02))
        for _ in range(3):
            assert await ask(client) == (200, {b"content-length": b"5"}, b"hello")
            await asyncio.sleep(0.1)
        assert server.connections == 3


@pytest.mark.parametrize("late", [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", None])
async def test_what_a_busy_event_loop_has_not_read_yet_never_answers_the_next_request(late: bytes | None) -> None:
    sent, taken = threading.Event(), []

    def serve(listening: socket.socket) -> None:
        for _ in range(2):
            connection, _address = listening.accept()
            taken.append(connection)
            connection.settimeout(PATIENCE_SECONDS)
            connection.recv(10_000)
            connection.sendall(OK)
            if sent.is_set():
                return
            connection.sendall(late) if late else connection.shutdown(socket.SHUT_WR)
            sent.set()

    with socket.create_server(("127.0.0.1", 0)) as listening, futures.ThreadPoolExecutor(1) as pool:
        listening.settimeout(PATIENCE_SECONDS)
        pool.submit(serve, listening)
        client = UpstreamClient(f"http://127.0.0.1:{listening.getsockname()[1]}", {}, 0.5, asyncio.Semaphore(1))
        assert (await ask(client)).body == b"hello"
        assert sent.wait(PATIENCE_SECONDS)  # Holds up the event loop, on purpose.
        assert (await ask(client)).body == b"hello"
        client.close()
    for connection in taken:
        connection.close()
    assert len(taken) == 2


async def test_a_connection_that_its_server_closes_is_not_reused(start: Start) -> None:
    client = await start(server := Server((OK.replace(b"200 OK\r\n", b"200 OK\r\nconnection: close\r\n"),)))
    await ask(client)
    await ask(client)
    assert server.connections == 2


async def test_a_refused_or_unaccepted_connection_fails_in_time() -> None:
    limit = asyncio.Semaphore(1)
    with pytest.raises(ConnectFailed):
        await ask(UpstreamClient("http://127.0.0.1:9", {}, 0.5, limit))
    with pytest.raises(ConnectFailed):
        await ask(UpstreamClient("http://no-such-host.invalid", {}, 0.5, limit))
    with pytest.raises(ConnectFailed):
        await ask(UpstreamClient("https://127.0.0.1:9", {}, 0.5, limit))
    assert not limit.locked()


async def test_a_response_that_takes_too_long_closes_its_connection(start: Start) -> None:
    client = await start(server := Server((OK,), pause=0.0))
    server.script = (b"HTTP/1.1 200 OK\r\n",)
    with pytest.raises(TimeoutError):
        await ask(client, seconds=0.1)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while server.open_now:
            await asyncio.sleep(0.01)


async def test_a_body_without_a_length_that_takes_too_long_is_not_complete(start: Start) -> None:
    client = await start(Server((b"HTTP/1.1 200 OK\r\n\r\npartial",)))
    with pytest.raises(TimeoutError):
        await ask(client, seconds=0.2)
    stream = await client.open_stream("/v1/x", b"{}", PATIENCE_SECONDS, 0.2)
    with pytest.raises(TimeoutError):
        await stream.read_rest()
    stream.close()


async def test_a_long_head_of_a_stream_is_followed_by_its_body(start: Start) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + b"x-long: %b\r\n" % (b"x" * 1_000) * 700
    client = await start(Server((head, b"\r\nhello")))
    stream = await client.open_stream("/v1/x", b"{}", PATIENCE_SECONDS, PATIENCE_SECONDS)
    assert await stream.read_rest() == b"hello"
    stream.close()


async def test_there_are_no_more_connections_than_slots_and_a_waiting_request_gets_one(start: Start) -> None:
    client = await start(server := Server((OK,), pause=0.02), limit=3)
    assert [answer.body for answer in await asyncio.gather(*(ask(client) for _ in range(20)))] == [b"hello"] * 20
    assert server.max_open == 3
    server.script = (b"HTTP/1.1 200 OK\r\n",)
    waiting = [asyncio.create_task(ask(client)) for _ in range(6)]
    await asyncio.sleep(0.05)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    server.script = (OK,)
    assert (await ask(client)).body == b"hello"


async def test_a_stream_gives_each_piece_as_it_arrives_and_its_connection_is_reused(start: Start) -> None:
    script = (CHUNKED, b"3\r\nhel\r\n", b"2\r\nlo\r\n", b"0\r\n\r\n")
    client = await start(server := Server(script, pause=0.05), limit=1)
    for _ in range(2):
        stream = await client.open_stream("/v1/x", b"{}", 1.0, 5.0)
        assert stream.status == 200
        assert [await stream.read_piece() for _ in range(3)] == [b"hel", b"lo", b""]
        stream.close()
    assert server.connections == 1


async def test_a_stream_that_is_idle_or_takes_too_long_ends(start: Start) -> None:
    client = await start(server := Server((CHUNKED, *[b"1\r\nx\r\n"] * 20), pause=0.05))
    stream = await client.open_stream("/v1/x", b"{}", 1.0, 0.3)
    with pytest.raises(TimeoutError) as caught:
        await stream.read_rest()
    assert not isinstance(caught.value, StreamIdle)
    stream.close()
    server.script = (CHUNKED, b"1\r\nx\r\n")
    stream = await client.open_stream("/v1/x", b"{}", 0.2, PATIENCE_SECONDS)
    assert await stream.read_piece() == b"x"
    with pytest.raises(StreamIdle):
        await stream.read_piece()
    stream.close()
    server.script = ()
    with pytest.raises(StreamIdle):
        await client.open_stream("/v1/x", b"{}", 0.2, PATIENCE_SECONDS)


async def test_a_shorter_deadline_holds_on_a_connection_that_had_a_longer_one(start: Start) -> None:
    client = await start(server := Server())
    await ask(client, seconds=2 * PATIENCE_SECONDS)
    server.script = ()
    clock = asyncio.get_running_loop().time
    began = clock()
    with pytest.raises(TimeoutError):
        await ask(client, seconds=0.2)
    assert 0.15 < clock() - began < PATIENCE_SECONDS
    assert server.connections == 1


async def test_the_deadline_of_a_finished_request_does_not_close_its_connection(start: Start) -> None:
    client = await start(server := Server())
    await ask(client, seconds=0.1)
    await asyncio.sleep(0.2)
    server.script, server.pause = (OK[:30], OK[30:]), 0.2
    assert (await ask(client, seconds=PATIENCE_SECONDS)).body == b"hello"
    assert server.connections == 1


async def test_a_stream_may_take_longer_than_a_piece_of_it(start: Start) -> None:
    client = await start(Server((CHUNKED, *[b"1\r\nx\r\n"] * 12, b"0\r\n\r\n"), pause=0.1))
    stream = await client.open_stream("/v1/x", b"{}", 1.0, PATIENCE_SECONDS)
    assert await stream.read_rest() == b"x" * 12
    stream.close()


async def test_without_a_free_connection_a_request_waits_for_a_while_and_says_that_the_shortage_is_ours(
    start: Start,
) -> None:
    client = await start(server := Server((), pause=0.0), limit=1, wait_seconds=0.2)
    first = asyncio.create_task(ask(client, seconds=PATIENCE_SECONDS))
    await asyncio.sleep(0.05)
    with pytest.raises(NoFreeConnection, match="RATCHET_GATEWAY_WORKERS"):
        await ask(client)
    with pytest.raises(NoFreeConnection):
        await client.open_stream("/v1/x", b"{}", 5.0, 5.0)
    server.script = (OK,)
    assert (await client.probe("/v1/models", 1.0)).body == b"hello"
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await ask(client)).body == b"hello"


async def test_the_time_that_a_request_waits_for_a_free_connection_is_not_taken_from_the_servers(start: Start) -> None:
    client = await start(Server((OK[:20], OK[20:]), pause=2.0), limit=1)
    # The first answer takes two seconds and the second one four, of six since it was asked.
    answers = await asyncio.gather(ask(client, seconds=5.0), ask(client, seconds=5.0))
    assert [answer.body for answer in answers] == [b"hello"] * 2


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS])
async def test_a_connection_that_our_own_machine_refuses_is_a_shortage_of_ours(
    start: Start, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    client = await start(Server(), limit=1)

    def raises(error: OSError) -> None:
        async def create_connection(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)

    numbered, refused = OSError(code, os.strerror(code)), "[Errno 111] Connection refused"
    for shortage in (numbered, OSError(f"Multiple exceptions: {numbered} ('::1'), {numbered} ('127.0.0.1')")):
        raises(shortage)
        with pytest.raises(NoFreeConnection, match=os.strerror(code)):
            await ask(client)
    raises(OSError(f"Multiple exceptions: {numbered} ('::1'), {refused}"))
    with pytest.raises(ConnectFailed):
        await ask(client)
    monkeypatch.undo()
    assert (await ask(client)).body == b"hello"


async def test_a_process_without_a_file_to_spare_says_so_even_if_it_cannot_look_up_a_name(start: Start) -> None:
    client = await start(server := Server())
    named = UpstreamClient(f"http://localhost.invalid:{server.url.rpartition(':')[2]}", {}, 0.5, asyncio.Semaphore(1))
    with no_free_files():
        for without in (client, named):
            with pytest.raises(NoFreeConnection):
                await ask(without)
    assert (await ask(client)).body == b"hello"
    with pytest.raises(ConnectFailed):
        await ask(named)


async def test_a_stream_has_its_time_limit_and_gives_up_its_slot_while_its_reader_does_something_else(
    start: Start,
) -> None:
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    client = await start(server := Server((CHUNKED, *[piece] * 400, b"0\r\n\r\n")), limit=1)
    stream = await client.open_stream("/v1/x", b"{}", 5.0, 0.3)
    await stream.read_piece()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while server.open_now:
            await asyncio.sleep(0.02)
    server.script = (OK,)
    assert (await ask(client, seconds=1.0)).body == b"hello"
    with pytest.raises(TimeoutError) as caught:
        await stream.read_rest()
    assert not isinstance(caught.value, StreamIdle)
    stream.close()
    answers = await asyncio.gather(*(ask(client) for _ in range(3)))
    assert [answer.body for answer in answers] == [b"hello"] * 3
    assert server.max_open == 1


async def test_a_server_has_to_wait_while_its_stream_is_not_read(start: Start) -> None:
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    client = await start(server := Server((CHUNKED, *[piece] * 400, b"0\r\n\r\n")))
    stream = await client.open_stream("/v1/x", b"{}", PATIENCE_SECONDS, PATIENCE_SECONDS)
    await asyncio.sleep(0.5)
    assert server.sent < 0x10000 * 200
    assert len(await stream.read_rest()) == 0x10000 * 400
    stream.close()


async def test_a_complete_stream_that_nobody_read_does_not_hold_up_the_next_request(start: Start) -> None:
    client = await start(server := Server((b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n",)))
    stream = await client.open_stream("/v1/x", b"{}", 60, 60)
    stream._connection.data_received(b"x" * 300_000)  # So much at once, and the end in it: reading pauses.
    stream.close()
    server.script = (OK,)
    assert (await ask(client, seconds=PATIENCE_SECONDS)).body == b"hello"
    assert server.connections == 1


@pytest.mark.parametrize("flood", [[], [b"1000\r\n" + b"x" * 0x1000 + b"\r\n"] * 100_000])
async def test_a_stream_that_does_not_end_after_its_last_wanted_piece_is_closed(
    start: Start, flood: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.upstreams.http_client._END_SECONDS", 0.2)
    client = await start(server := Server((CHUNKED, b"1\r\nx\r\n", *flood)))
    stream = await client.open_stream("/v1/x", b"{}", PATIENCE_SECONDS, PATIENCE_SECONDS)
    assert (await stream.read_piece()).startswith(b"x")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await stream.finish()
        stream.close()
        server.script = (OK,)
        assert (await ask(client)).body == b"hello"
    assert server.connections == 2


async def test_a_user_in_the_address_becomes_an_authorization_header(start: Start) -> None:
    client = await start(server := Server())
    named = UpstreamClient(f"http://ann:p%40ss@{server.url}", {}, PATIENCE_SECONDS, asyncio.Semaphore(1))
    await ask(named)
    assert b"authorization: Basic YW5uOnBAc3M=\r\n" in server.requests[0]
    assert server.url.encode() in server.requests[0]
    named.close()
    client.close()


async def test_a_server_with_tls_needs_a_valid_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = tmp_path / "localhost.pem"
    pem.write_bytes(self_signed("localhost"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{listening.sockets[0].getsockname()[1]}"
    with pytest.raises(ConnectFailed, match="certificate"):
        await ask(UpstreamClient(url, {}, 2.0, asyncio.Semaphore(1)))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with pytest.raises(ConnectFailed, match="certificate"):
        await ask(UpstreamClient(url.replace("localhost", "127.0.0.1"), {}, 2.0, asyncio.Semaphore(1)))
    client = UpstreamClient(url, {}, 2.0, asyncio.Semaphore(1))
    for _ in range(2):
        assert (await ask(client)).body == b"hello"
    assert len(server.requests) == 2
    client.close()
    listening.close()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://host:port"])
def test_an_invalid_address_is_refused_with_an_example_of_a_valid_one(url: str) -> None:
    with pytest.raises(ConfigurationError, match="not the address of a model server"):
        UpstreamClient(url, {}, 1.0, asyncio.Semaphore(1))
