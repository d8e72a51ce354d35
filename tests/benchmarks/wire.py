"""What asking a model server costs a process: `services/gateway/upstreams/http_client.py` beside aiohttp and httpx.

`python -m tests.benchmarks.wire [REQUESTS]`: requests one after the other, to a server that answers with a constant.
Prints microseconds of the processor, of this process alone, for each; best of five rounds, taken in turns.
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

from services.gateway.observability.metrics import Metrics
from services.gateway.settings import UpstreamLimits
from services.gateway.upstreams.http_client import UpstreamClient
from services.gateway.upstreams.replicas import Replicas
from tests.conftest import ROOT, free_ports

PATH = "/v1/chat/completions"
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "%s"}]}' % (b"x" * 200)
ANSWER = b'{"choices": []}' + b" " * 600
ROUNDS = 5


class Constant(asyncio.Protocol):
    """The server: one answer for each request that came in one piece or ends one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._seen = b""

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if self._seen.endswith(BODY):
            self._seen = b""
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
            self._transport.write(head + ANSWER)  # type: ignore[attr-defined]


async def serve(port: int) -> None:
    await (await asyncio.get_running_loop().create_server(Constant, "127.0.0.1", port)).serve_forever()


async def compare(port: int, requests: int) -> dict[str, float]:
    """Microseconds of the processor a request, by client."""
    url = f"http://127.0.0.1:{port}"
    headers = {"content-type": "application/json"}
    http = UpstreamClient(url, headers, 2.0, asyncio.Semaphore(10))
    replicas = Replicas([url], UpstreamLimits(), Metrics())
    async with aiohttp.ClientSession(headers=headers) as session, httpx.AsyncClient(headers=headers) as client:

        async def by_aiohttp() -> object:
            async with session.post(url + PATH, data=BODY) as response:
                return await response.read()

        clients: dict[str, Callable[[], Awaitable[object]]] = {
            "wire": lambda: http.request("POST", PATH, BODY, 60.0),
            "wire, with choice, circuit and retries": lambda: replicas.post(PATH, BODY),
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
    (port,) = free_ports(1)
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.benchmarks.wire", "serve", str(port), cwd=ROOT, stdin=subprocess.DEVNULL
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
