"""A gateway's application on a real socket, served as the gateway serves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from services.gateway.asgi.protocol import HttpProtocol

PATIENCE = 1


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[tuple[int, set[Any]]]:
    """Serve the application as the gateway does. Yields the port and the connections that the server holds."""
    config = uvicorn.Config(app, port=0, http=HttpProtocol, log_level="critical", timeout_keep_alive=PATIENCE)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1], server.server_state.connections
    finally:
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        server.should_exit = True
        await serving
