"""The connections of streams, on real sockets: which are reused, which are cut, and that small writes leave at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvloop
from aiohttp import web

from deploy.devstack.ports import take_ports
from services.gateway.main import _HTTP
from services.gateway.observability.metrics import Metrics
from services.gateway.upstreams.replicas import Replicas
from shared.service import HttpServer, Service, running
from tests.unit.gateway.conftest import PATIENT_LIMITS, REFUND, serving
from tests.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

STREAMED = {"model": "support", "messages": [{"role": "user", "content": "hello"}], "stream": True}


@dataclass
class ModelServer:
    """Streams an answer. Seconds: `between` its events, `before_end` from the last one to the end of the response.

    `connections`: the ports of the clients' connections; `cut`: responses whose client closed its connection.
    """

    between: float = 0.02
    before_end: float = 0.02
    pieces: list[bytes] = field(default_factory=lambda: list(REFUND))
    port: int = 0
    connections: set[int] = field(default_factory=set)
    finished: int = 0
    cut: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername")[1])
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            for piece in self.pieces:
                await asyncio.sleep(self.between)
                await response.write(piece)
            await asyncio.sleep(self.before_end)
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.cut += 1
            raise
        self.finished += 1
        return response


@dataclass
class Stack:
    gateway: Gateway
    model_server: ModelServer
    replicas: Replicas
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/chat/completions"

    @property
    def outstanding(self) -> int:
        return sum(replica.outstanding for replica in self.replicas._pool)

    async def read(self, events: int | None = None) -> bytes:
        """Ask for a stream on a connection of its own, which closes after this many events or the last one."""
        async with (
            httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http,
            http.stream("POST", self.url, json=STREAMED) as response,
        ):
            read = b""
            async for piece in response.aiter_raw():
                read += piece
                if read.count(b"\n\n") == events or read.endswith(b"data: [DONE]\n\n"):
                    break
        return read


@contextlib.asynccontextmanager
async def running_stack(share_port: bool = False, stop_seconds: int = 5) -> AsyncIterator[Stack]:
    """A gateway between real sockets. `share_port`: it listens as one of several workers does. `stop_seconds`: for how
    long its stop waits for the answers in progress."""
    model_server = ModelServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", model_server.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    model_server.port = runner.addresses[0][1]
    replicas = Replicas([f"http://127.0.0.1:{model_server.port}"], PATIENT_LIMITS, Metrics())
    (port,) = take_ports(1)
    async with serving(replicas=replicas) as gateway:
        options = {**_HTTP, "timeout_graceful_shutdown": stop_seconds}
        service = Service("gateway", None, http=HttpServer(gateway.app, "127.0.0.1", port, share_port, options))
        async with running([service]):
            await until(lambda: service.servers[0].started)
            yield Stack(gateway, model_server, replicas, port)
    await replicas.close()
    await runner.cleanup()


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


@pytest.mark.parametrize(("between", "before_end"), [(0.02, 0.0), (0.02, 0.03), (0.0, 0.08)])
async def test_streams_of_any_length_share_one_upstream_connection(
    stack: Stack, between: float, before_end: float
) -> None:
    stack.model_server.between, stack.model_server.before_end = between, before_end
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        for _ in range(10):
            assert (await http.post(stack.url, json=STREAMED)).content.endswith(b"data: [DONE]\n\n")
            await until(lambda: stack.outstanding == 0)
    assert (len(stack.model_server.connections), stack.model_server.cut) == (1, 0)
    assert [event.status for event in stack.gateway.log.observed] == [200] * 10


async def test_streams_that_end_without_done_are_whole_and_share_one_upstream_connection(stack: Stack) -> None:
    stack.model_server.pieces = list(REFUND[:-1])
    for _ in range(3):
        assert (await stack.read()).endswith(b"data: [DONE]\n\n")
        await until(lambda: stack.outstanding == 0)
    assert (len(stack.model_server.connections), stack.model_server.cut) == (1, 0)
    assert [event.status for event in stack.gateway.log.observed] == [200] * 3


async def test_clients_that_close_right_after_the_last_event_leave_the_upstream_connection_usable(
    stack: Stack,
) -> None:
    for _ in range(10):
        assert (await stack.read()).endswith(b"data: [DONE]\n\n")
        await until(lambda: stack.outstanding == 0)
    assert (len(stack.model_server.connections), stack.model_server.cut) == (1, 0)
    name = 'ratchet_gateway_requests_total{route="/v1/chat/completions",status="200"}'
    assert await stack.gateway.metric(name) == 10.0


async def test_a_client_that_leaves_in_the_middle_stops_the_generation_and_its_connection_is_not_reused(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.upstreams.http_client._END_SECONDS", 60.0)
    stack.model_server.pieces = [*REFUND[:2], *REFUND[2:3] * 2_000, *REFUND[3:]]
    assert b"[DONE]" not in await stack.read(events=4)
    await until(lambda: stack.model_server.cut == 1)
    await until(lambda: stack.gateway.log.predictions)
    assert [event.finish_reason for event in stack.gateway.log.predictions] == ["client_left"]
    assert (stack.model_server.finished, stack.outstanding) == (0, 0)
    stack.model_server.pieces = list(REFUND)
    assert (await stack.read()).endswith(b"data: [DONE]\n\n")
    assert len(stack.model_server.connections) == 2


async def test_a_stream_that_the_gateways_stop_breaks_off_says_that_and_not_that_its_client_left() -> None:
    async with httpx.AsyncClient() as http, contextlib.AsyncExitStack() as open_streams:
        async with running_stack(stop_seconds=0) as stack:
            stack.model_server.pieces = [*REFUND[:2], *REFUND[2:3] * 100_000]
            asked = http.stream("POST", stack.url, json=STREAMED)
            response = await open_streams.enter_async_context(asked)
            pieces = response.aiter_raw()  # Without a reference to it, it would be closed.
            await anext(pieces)
        ((answer,), (observed,)) = stack.gateway.log.predictions, stack.gateway.log.observed
        assert answer.finish_reason == "gateway_stopped"
        assert answer.prediction_id == response.headers["x-ratchet-prediction-id"]
        assert (observed.status, observed.gateway_stopped) == (503, True)
        labels = {"route": "/v1/chat/completions", "status": "503"}
        registry = stack.gateway.metrics.registry
        assert registry.get_sample_value("ratchet_gateway_requests_total", labels) == 1.0


async def test_an_upstream_that_does_not_end_a_complete_answer_loses_its_connection_not_its_good_name(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.upstreams.http_client._END_SECONDS", 0.1)
    stack.model_server.before_end = 60.0
    assert (await stack.read()).endswith(b"data: [DONE]\n\n")
    await until(lambda: stack.model_server.cut == 1)
    assert stack.outstanding == 0
    assert [replica.failures for replica in stack.replicas._pool] == [0]
    assert [event.status for event in stack.gateway.log.observed] == [200]


@pytest.mark.parametrize("share_port", [False, True])
@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_tcp_nodelay_is_set_on_both_sides_of_the_gateway(loop: Any, share_port: bool) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(nodelay_on_both_sides(share_port)) == ([True], [True])


async def nodelay_on_both_sides(share_port: bool) -> tuple[list[bool], list[bool]]:
    """TCP_NODELAY of the gateway's sockets after a stream: those to clients, those to the model server."""
    async with running_stack(share_port) as stack, httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        await http.post(stack.url, json=STREAMED)
        await until(lambda: stack.outstanding == 0)
        with open_sockets() as sockets:
            connected = [(s, peer) for s in sockets if (peer := peer_port(s)) is not None]
            client_side = [s for s, _ in connected if s.getsockname()[1] == stack.port]
            upstream_side = [s for s, peer in connected if peer == stack.model_server.port]
            return nodelay(client_side), nodelay(upstream_side)


def nodelay(sockets: Sequence[socket.socket]) -> list[bool]:
    return [s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0 for s in sockets]


@contextlib.contextmanager
def open_sockets() -> Iterator[list[socket.socket]]:
    """Copies of this process's TCP sockets over IPv4."""
    with contextlib.ExitStack() as copies:
        paths = [path for path in Path("/proc/self/fd").iterdir() if path.is_socket()]
        sockets = [copies.enter_context(socket.socket(fileno=os.dup(int(path.name)))) for path in paths]
        yield [s for s in sockets if (s.family, s.type) == (socket.AF_INET, socket.SOCK_STREAM)]


def peer_port(connection: socket.socket) -> int | None:
    """The port of the other end; None for a socket that listens."""
    try:
        return int(connection.getpeername()[1])
    except OSError:
        return None
