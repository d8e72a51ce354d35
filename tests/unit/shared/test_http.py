"""Every HTTP service refuses bodies that are too large, and has one shape of errors."""

from __future__ import annotations

import re

import httpx
import pytest
from fastapi import Request
from starlette.types import Message

from shared.errors import DependencyUnavailable, InvalidMessage
from shared.http import HttpError, build_http

missing: list[str] = []


@pytest.fixture
async def client():  # type: ignore[no-untyped-def]
    app = build_http("test", ready=lambda: missing, max_body_bytes=100)

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    @app.get("/raise/{kind}")
    async def fail(kind: str) -> None:
        raise {
            "http": HttpError(404, "no such thing", "not_found", "id"),
            "invalid": InvalidMessage("bad", "write it so"),
            "unavailable": DependencyUnavailable("gone", "start it"),
        }[kind]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        yield client


async def test_a_body_over_the_limit_is_refused_by_its_length(client: httpx.AsyncClient) -> None:
    response = await client.post("/echo", content=b"x" * 101)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert (await client.post("/echo", content=b"x" * 100)).json() == 100


async def test_a_streamed_body_over_the_limit_is_refused_by_what_arrives(client: httpx.AsyncClient) -> None:
    async def chunks():  # type: ignore[no-untyped-def]
        for _ in range(30):
            yield b"x" * 10

    assert (await client.post("/echo", content=chunks())).status_code == 413


async def test_a_client_that_disconnects_within_its_body_is_not_an_internal_error() -> None:
    app = build_http("test", ready=list, max_body_bytes=100)
    sent: list[int] = []

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message.get("status", 0))

    scope = {"type": "http", "method": "POST", "path": "/echo", "headers": [], "query_string": b"", "app": app}
    await app(scope, receive, send)
    assert sent[0] == 499


@pytest.mark.parametrize(("kind", "status"), [("http", 404), ("invalid", 422), ("unavailable", 503)])
async def test_errors_have_openais_shape(client: httpx.AsyncClient, kind: str, status: int) -> None:
    response = await client.get(f"/raise/{kind}")
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert (await client.get("/nowhere")).json()["error"]["code"] == "http_error"


async def test_readiness_names_what_is_missing(client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).status_code == 200
    missing.append("vllm")
    response = await client.get("/readyz")
    assert response.status_code == 503 and response.json()["missing"] == ["vllm"]
    missing.clear()


async def test_the_page_of_the_api_loads_nothing_from_the_internet(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(assets) >= 2
    assert [asset for asset in assets if not asset.startswith("/")] == []
    assert {(await client.get(asset)).status_code for asset in assets} == {200}
    assert "cdn" not in page
