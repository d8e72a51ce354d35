"""The processor time of HTTP clients: `services/gateway/upstreams/http_client.py` against aiohttp and httpx.

`python -m tests.benchmarks.http_clients [REQUESTS]`: one request after the other, to a server with a constant answer.
Prints the microseconds of processor time per request of this process alone: the best of five rounds for each client.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp
import httpx
import uvloop

from deploy.devstack.ports import take_ports
from services.gateway.observability.metrics import Metrics
from services.gateway.settings import UpstreamLimits
from services.gateway.upstreams.http_client import UpstreamClient
from services.gateway.upstreams.replicas import Replicas
from tests.conftest import ROOT

PATH = "/v1/chat/completions"
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "%s"}]}' % (b"x" * 200)
ANSWER = b'{"choices": []}' + b" " * 600
ROUNDS = 5


class Constant(asyncio.Protocol):
    """The server: the same answer to each request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(BODY):
            self._received = b""
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
            self._transport.write(head + ANSWER)  # type: ignore[attr-defined]


async def serve(port: int) -> None:
    await (await asyncio.get_running_loop().create_server(Constant, "127.0.0.1", port)).serve_forever()


async def compare(port: int, requests: int) -> dict[str, float]:
    """Return the microseconds of processor time per request, by client."""
    url = f"http://127.0.0.1:{port}"
    headers = {"content-type": "application/json"}
    http = UpstreamClient(url, headers, 2.0, asyncio.Semaphore(10))
    replicas = Replicas([url], UpstreamLimits(), Metrics())
    async with aiohttp.ClientSession(headers=headers) as session, httpx.AsyncClient(headers=headers) as client:

        async def by_aiohttp() -> object:
            async with session.post(url + PATH, data=BODY) as response:
                return await response.read()

        clients: dict[str, Callable[[], Awaitable[object]]] = {
            "gateway's client": lambda: http.request("POST", PATH, BODY, 60.0),
            "gateway's client, with choice, circuit breaker and retries": lambda: replicas.post(PATH, BODY),
            "aiohttp": by_aiohttp,
            "httpx": lambda: client.post(url + PATH, content=BODY),
        }
        best = dict.fromkeys(clients, float("inf"))
        for _ in range(ROUNDS):
            for name, ask in clients.items():
                for _ in range(50):
                    await ask()
                started = time.process_time()
                for _ in range(requests):
                    await ask()
                best[name] = min(best[name], (time.process_time() - started) / requests * 1e6)
    await replicas.close()
    return best


async def run(requests: int) -> None:
    (port,) = take_ports(1)
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.benchmarks.http_clients", "serve", str(port), cwd=ROOT, stdin=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.05)
        for name, microseconds in (await compare(port, requests)).items():
            print(f"{microseconds:7.1f} µs  {name}")
    finally:
        server.kill()
        await server.wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[2])) if "serve" in sys.argv else run(int((*sys.argv[1:], "1000")[0])))
