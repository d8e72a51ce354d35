"""The HTTP front: OpenAI's API, in which `model` is the name of a published model or adapter.

A whole model is woken and asked; an adapter's request goes on to the stack's vLLM, which finds the adapter itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from deploy.devstack.model_server.pool import ModelPool
from shared.errors import DependencyUnavailable
from shared.http import HttpError, build_http
from shared.model.adapter_files import check_model
from shared.storage.artifacts import ArtifactNotFound, ArtifactStore

KINDS = ("models", "adapters")
_MAX_BODY_BYTES = 32 * 1024**2
_ANSWER_SECONDS = 600.0
_LISTED = 50


class Front:
    """The ASGI application of all requests to models. `vllm`: the address of the server of adapters."""

    def __init__(self, store: ArtifactStore, pool: ModelPool, vllm: str) -> None:
        self._store, self._pool, self._vllm = store, pool, vllm
        self._client = httpx.AsyncClient(timeout=_ANSWER_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request as the model's server does, piece by piece. Raises HttpError or RatchetError before."""
        request = Request(scope, receive)
        body = await request.body()
        async with self._server_of(_model_in(body)) as url:
            url, passed = url + request.url.path, {"content-type": "application/json"}
            async with self._client.stream("POST", url, content=body, headers=passed) as answer:
                kind = {"content-type": answer.headers.get("content-type", "application/json")}
                await StreamingResponse(answer.aiter_raw(), answer.status_code, kind)(scope, receive, send)

    async def names(self, kind: str) -> list[str]:
        """Return what is published of a kind."""
        return [name for name in await asyncio.to_thread(self._store.names, kind) if not name.startswith(".")]

    async def close(self) -> None:
        await self._client.aclose()
        await self._pool.close()

    @asynccontextmanager
    async def _server_of(self, name: str) -> AsyncIterator[str]:
        """Yield the address of the server that answers for a model."""
        if (folder := await self._folder("models", name)) is not None:
            check_model(folder)
            async with self._pool.awake(name, folder) as model:
                try:
                    yield model.url
                except httpx.TransportError as error:
                    raise model.failure(f"broke off: {error!r}") from error
        elif await self._folder("adapters", name) is not None:
            try:
                yield self._vllm
            except httpx.TransportError as error:
                raise DependencyUnavailable(f"{self._vllm} does not answer: {error!r}", "ratchet status") from error
        else:
            known = [known for kind in KINDS for known in await self.names(kind)]
            listed = ", ".join(known[:_LISTED]) or "none yet"
            raise HttpError(404, f"there is no model {name[:200]!r}. Published: {listed}", "model_not_found", "model")

    async def _folder(self, kind: str, name: str) -> Path | None:
        """Return the folder of what is published under a name on this machine; None: nothing is."""
        try:
            return await asyncio.to_thread(self._store.fetch, self._store.address(kind, name))
        except ArtifactNotFound:
            return None


def build_app(front: Front) -> FastAPI:
    """Return the application of the front."""
    app = build_http("Ratchet models", list, _MAX_BODY_BYTES)

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        names = [name for kind in KINDS for name in await front.names(kind)]
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "ratchet"} for name in names]
        return {"object": "list", "data": listed}

    @app.get("/health")
    async def health() -> None:
        """Nothing, as vLLM: it answers."""

    app.router.routes.append(Route("/v1/{path:path}", front, methods=["POST"]))
    return app


def _model_in(body: bytes) -> str:
    try:
        model = json.loads(body)["model"]
    except (ValueError, LookupError, TypeError, RecursionError):
        model = None
    if not isinstance(model, str) or not model:
        raise HttpError(400, "the body is not JSON with a `model`", "invalid_request", "model")
    return model
