"""A model server that tests kill: `python -m tests.integration.model_process PORT`.

An answer takes 50 ms, a streamed one 250 ms, and its text names the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
from aiohttp import web

from deploy.devstack.ports import take_ports
from tests.conftest import ROOT
from tests.waiting import PATIENCE_SECONDS

CHUNKS = 8


async def complete(request: web.Request) -> web.StreamResponse:
    body = orjson.loads(await request.read())
    text = f"from {request.app['port']}"
    head: dict[str, Any] = {"id": "c", "created": 1, "model": body["model"]}
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    logprobs = {"content": [{"token": "t", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}
    await asyncio.sleep(0.05)
    if not body.get("stream"):
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
        return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for number in range(CHUNKS):
        delta = {"role": "assistant", "content": text} if number == 0 else {"content": "."}
        finish_reason = "stop" if number == CHUNKS - 1 else None
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
        await asyncio.sleep(0.025)
    usage_chunk = {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
    await response.write(b"data: " + orjson.dumps(usage_chunk) + b"\n\ndata: [DONE]\n\n")
    return response


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": []})


@dataclass
class ModelProcess:
    """The server, in a process of its own."""

    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def launch(self) -> None:
        argv = [sys.executable, "-m", "tests.integration.model_process", str(self.port)]
        self.process = subprocess.Popen(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})

    async def start(self) -> None:
        """Start the server and wait until it answers."""
        self.launch()
        async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http, asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    await http.get(f"{self.url}/v1/models")
                    return
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@asynccontextmanager
async def model_processes(count: int) -> AsyncIterator[list[ModelProcess]]:
    """Run `count` servers."""
    servers = [ModelProcess(port) for port in take_ports(count)]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        yield servers
    finally:
        for server in servers:
            server.kill()


def main() -> None:
    """Entry point."""
    app = web.Application()
    app["port"] = int(sys.argv[1])
    app.add_routes([web.post("/v1/chat/completions", complete), web.get("/v1/models", models)])
    web.run_app(app, host="127.0.0.1", port=app["port"], print=None)


if __name__ == "__main__":
    main()
