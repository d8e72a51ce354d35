"""A bare pass-through: the minimum that a gateway in Python costs.

An ASGI app for uvicorn or granian. It forwards to `RATCHET_BENCH_UPSTREAM`; `RATCHET_BENCH_CLIENT` is aiohttp or httpx.
"""

from __future__ import annotations

import os
from typing import Any

import aiohttp
import httpx

_URL = os.environ.get("RATCHET_BENCH_UPSTREAM", "") + "/v1/chat/completions"
_JSON = {"content-type": "application/json"}
_CONNECTIONS = 1_000


async def _body(receive: Any) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


async def _start(send: Any, status: int, content_type: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type.encode())]})


class ThroughAiohttp:
    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_CONNECTIONS))
        async with self._session.post(_URL, data=await _body(receive), headers=_JSON) as answer:
            await _start(send, answer.status, answer.headers["content-type"])
            if answer.content_type == "text/event-stream":
                async for piece in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            else:
                await send({"type": "http.response.body", "body": await answer.read()})


class ThroughHttpx:
    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if self._client is None:
            limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
            self._client = httpx.AsyncClient(limits=limits, trust_env=False)
        async with self._client.stream("POST", _URL, content=await _body(receive), headers=_JSON) as answer:
            await _start(send, answer.status_code, answer.headers["content-type"])
            if answer.headers["content-type"].startswith("text/event-stream"):
                async for piece in answer.aiter_raw():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            else:
                await send({"type": "http.response.body", "body": await answer.aread()})


app = ThroughHttpx() if os.environ.get("RATCHET_BENCH_CLIENT") == "httpx" else ThroughAiohttp()
