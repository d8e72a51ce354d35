"""Clients that do not read their answers, on real sockets, with a model server that streams megabytes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import uvloop
from aiohttp import web
from fastapi import FastAPI
from fastapi.responses import Response

from services.gateway.observability.metrics import Metrics
from services.gateway.upstreams.replicas import Replicas
from tests.unit.gateway.conftest import PATIENT_LIMITS, chat_completion, chunk, serving, sse
from tests.unit.gateway.real_sockets import PATIENCE, listening
from tests.waiting import PATIENCE_SECONDS, until

LARGE = 16 * 1024**2
"""More than the kernel buffers for a connection."""

Loop = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Loop:
    """Run a coroutine on each kind of event loop: their transports are different programs."""
    loop: Loop = request.param
    return loop


@asynccontextmanager
async def endless_model() -> AsyncIterator[tuple[str, list[str]]]:
    """A model server whose streams do not end; another request is answered at once. Yields its address, and what
    became of its streams."""
    ends: list[str] = []
    piece = sse(chunk({"content": "x" * 10_000}))[0]

    async def complete(request: web.Request) -> web.StreamResponse:
        if not (await request.json()).get("stream"):
            return web.json_response(chat_completion("refund", [-0.1]))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(piece)
                await asyncio.sleep(0)
        except (asyncio.CancelledError, ConnectionError):
            ends.append("cancelled")
            raise

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", ends
    finally:
        await runner.cleanup()


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """A client with a small receive buffer."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.connect(("127.0.0.1", port))
        client.setblocking(False)
        yield client


async def post(client: socket.socket, path: str, body: Any, headers: bytes = b"") -> None:
    raw = json.dumps(body).encode()
    head = b"POST %b HTTP/1.1\r\nhost: g\r\n%bcontent-length: %d\r\n\r\n" % (path.encode(), headers, len(raw))
    await asyncio.get_running_loop().sock_sendall(client, head + raw)


def test_a_client_that_does_not_read_its_stream_is_cut_and_its_slot_is_free(run: Loop) -> None:
    body = {"model": "support", "messages": [{"role": "user", "content": "tell me all"}]}

    async def scenario() -> None:
        async with endless_model() as (url, ends):
            replicas = Replicas([url], replace(PATIENT_LIMITS, connections=1), Metrics())
            async with serving(replicas=replicas) as gateway, listening(gateway.app) as (port, _):
                with connected(port) as client:
                    await post(client, "/v1/chat/completions", {**body, "stream": True})
                    await until(lambda: bool(ends))
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        answer = await gateway.http.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200
                assert [event.status for event in gateway.log.observed] == [499, 200]
            assert not any(replica.circuit_open or replica.failures for replica in replicas._pool)
            await replicas.close()

    run(scenario())


def _answers() -> FastAPI:
    app = FastAPI()

    @app.post("/large")
    async def large() -> Response:
        return Response(b"x" * LARGE)

    @app.post("/small")
    async def small() -> Response:
        return Response(b"x" * 20_000)

    return app


@pytest.mark.parametrize("headers", [b"", b"connection: close\r\n"])
def test_a_client_that_does_not_read_a_large_answer_is_cut(run: Loop, headers: bytes) -> None:
    async def scenario() -> None:
        async with listening(_answers()) as (port, connections):
            with connected(port) as client:
                await post(client, "/large", None, headers)
                await until(lambda: bool(connections))
                await until(lambda: not connections)

    run(scenario())


@pytest.mark.parametrize("last", [b"", b"connection: close\r\n"])
def test_a_connection_with_a_little_that_nobody_reads_is_closed_in_time(run: Loop, last: bytes) -> None:
    """Too little waits to pause the answer, and a connection that closes waits for the client to read it."""

    async def scenario() -> None:
        async with listening(_answers()) as (port, connections):
            with connected(port) as client:
                await until(lambda: bool(connections))
                (connection,) = connections
                # With the kernel's own buffer it may take longer to fill it than the client has to read.
                connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
                await post(client, "/small", None)
                await post(client, "/small", None, last)
                paused, waited = False, 0

                def closed() -> bool:
                    nonlocal paused, waited
                    paused = paused or not connection.writable.is_set()
                    waited = max(waited, connection.transport.get_write_buffer_size())
                    return not connections

                await until(closed)
                assert waited and not paused

    run(scenario())


def test_a_client_that_reads_slowly_gets_its_whole_answer(run: Loop) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with listening(_answers()) as (port, connections):
            with connected(port) as client:
                await until(lambda: bool(connections))
                (connection,) = connections
                connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
                await post(client, "/large", None)
                received, began = 0, loop.time()
                while received < LARGE:
                    part = await loop.sock_recv(client, 512 * 1024)
                    assert part, f"cut after {received} bytes"
                    received += len(part)
                    if loop.time() - began < 4 * PATIENCE:
                        await asyncio.sleep(0.05)
                assert loop.time() - began > 3 * PATIENCE

    run(scenario())
