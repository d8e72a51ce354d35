"""Requests that come in one turn of the event loop are sent at its end, over connections that are still idle then."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from services.gateway.upstreams.http_client import ConnectionLost, UpstreamClient, UpstreamResponse
from tests.unit.gateway.certificates import self_signed
from tests.waiting import PATIENCE_SECONDS

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"

Run = Callable[[Coroutine[Any, Any, None]], None]
both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
"""One handles what waits in a socket after the end of a turn, one before it."""


class Server:
    """A client, and the server's ends of its connections, which only the test reads and writes."""

    def __init__(self, client: UpstreamClient, listening: socket.socket) -> None:
        self.client = client
        self._listening = listening
        self.ends: list[socket.socket] = []

    def ask(self, number: int, body: bytes = b"{}") -> list[asyncio.Task[UpstreamResponse]]:
        """Send requests in one turn, once it is over."""
        return [
            asyncio.create_task(self.client.request("POST", "/v1/x", body, PATIENCE_SECONDS)) for _ in range(number)
        ]

    def asked(self, number: int = 0) -> list[int]:
        """The numbers of the connections over which a request has come since the last time, once there are `number`.

        Holds up the event loop, on purpose.
        """
        found: set[int] = set()
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            found |= {n for n, end in enumerate(self.ends) if _received(end)}
            if len(found) >= number or time.monotonic() > until:
                return sorted(found)
            time.sleep(0.001)

    def answer(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.ends[number].send(OK)

    async def warm_up(self, number: int) -> None:
        """Open connections, and use them all in one turn: from then on requests are known to come together."""
        loop = asyncio.get_running_loop()
        for _ in range(2):
            asked = self.ask(number)
            while len(self.ends) < number:
                end, _ = await loop.sock_accept(self._listening)
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # What is sent arrives at once.
                self.ends.append(end)
            for end in self.ends:
                await loop.sock_recv(end, 10_000)
                await loop.sock_sendall(end, OK)
            await asyncio.gather(*asked)


def _received(end: socket.socket) -> bytes:
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        return end.recv(200_000)
    return b""


@contextlib.asynccontextmanager
async def idle_connections(number: int) -> AsyncIterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        client = UpstreamClient(url, {}, PATIENCE_SECONDS, asyncio.Semaphore(number))
        server = Server(client, listening)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await server.warm_up(number)
                yield server
        finally:
            client.close()
            for end in server.ends:
                end.close()


@both_loops
def test_requests_of_one_turn_are_sent_at_its_end(run: Run) -> None:
    async def play() -> None:
        async with idle_connections(3) as server:
            asked = server.ask(3)
            await asyncio.sleep(0)
            assert server.asked() == []
            await asyncio.sleep(0)
            assert server.asked(3) == [0, 1, 2]
            server.answer([0, 1, 2])
            assert [response.body for response in await asyncio.gather(*asked)] == [b"hello"] * 3

    run(play())


@both_loops
def test_a_request_that_is_alone_does_not_wait_for_the_end_of_its_turn(run: Run) -> None:
    async def play() -> None:
        async with idle_connections(2) as server:
            for round_number in range(3):  # The first of them finds that requests came together.
                (asked,) = server.ask(1)
                await asyncio.sleep(0)
                if round_number == 0:
                    assert server.asked() == []
                    await asyncio.sleep(0)
                (number,) = server.asked(1)
                server.answer([number])
                assert (await asked).body == b"hello"

    run(play())


def test_a_large_request_is_sent_at_once() -> None:
    async def play() -> None:
        async with idle_connections(2) as server:
            asked = server.ask(2, b"x" * 100_000)
            await asyncio.sleep(0)
            assert server.asked(2) == [0, 1]
            for request in asked:
                request.cancel()

    asyncio.run(play())


@both_loops
@pytest.mark.parametrize("late", [EVIL, b""])
def test_what_comes_before_a_request_is_sent_never_answers_it(run: Run, late: bytes) -> None:
    async def play() -> None:
        async with idle_connections(2) as server:
            asked = server.ask(2)
            await asyncio.sleep(0)
            for end in server.ends:
                end.send(late) if late else end.shutdown(socket.SHUT_WR)
            for error in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(error, ConnectionLost)  # Which the caller tries again.
            assert server.asked() == []

    run(play())


@contextlib.contextmanager
def tls_server(certificate: Path) -> Iterator[int]:
    """A server in a thread of its own, which answers whatever the client's event loop does. Yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    ports: list[int] = []
    ready, over = threading.Event(), threading.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"{}")
                writer.write(OK)

    async def serve() -> None:
        listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context, backlog=200)
        ports.append(listening.sockets[0].getsockname()[1])
        ready.set()
        await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    assert ready.wait(PATIENCE_SECONDS)
    try:
        yield ports[0]
    finally:
        over.set()
        thread.join()


@both_loops
def test_session_tickets_of_a_server_with_tls_lose_no_request(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pem := tmp_path / "localhost.pem").write_bytes(self_signed("localhost"))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))

    async def play(port: int) -> None:
        loop, over = asyncio.get_running_loop(), False

        def work() -> None:  # In each turn of the event loop, so that tickets come before its end.
            time.sleep(0.003)
            if not over:
                loop.call_soon(work)

        client = UpstreamClient(f"https://localhost:{port}", {}, PATIENCE_SECONDS, asyncio.Semaphore(20))
        work()
        asked = [client.request("POST", "/v1/x", b"{}", PATIENCE_SECONDS) for _ in range(20)]
        assert {response.body for response in await asyncio.gather(*asked)} == {b"hello"}
        over = True
        client.close()

    with tls_server(pem) as port:
        run(play(port))
