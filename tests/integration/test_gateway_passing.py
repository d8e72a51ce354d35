"""What a gateway lets pass, with a real process and a real broker: large bodies, other models, keys of servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import pytest
from aiohttp import web

from schemas.base import Variant
from schemas.predictions import RequestObserved
from schemas.task_settings import RedactionSettings
from schemas.tasks import NO_TASK, TaskKind, TaskSpec
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from tests.integration.gateway_clients import GatewayBackends, read_topic
from tests.integration.gateway_process import GatewayProcess, OwnBroker, model_server
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack

CHAT = "/v1/chat/completions"
MIB = 1024**2


@pytest.fixture(scope="module")
async def backends(shared_broker: OwnBroker) -> AsyncIterator[GatewayBackends]:
    settings = await asyncio.to_thread(shared_broker.start)
    plain = RedactionSettings(enabled=False)
    spec = TaskSpec(name=f"passing-{uuid4().hex[:8]}", kind=TaskKind.GENERATION, system_prompt="Help.", redaction=plain)
    async with model_server(lambda: "Hello.") as vllm:
        backends = GatewayBackends(shared_broker, settings, vllm, (spec, spec))
        await backends.publish_tasks()
        yield backends


@pytest.fixture
async def other() -> AsyncIterator[tuple[str, list[tuple[str, bytes]]]]:
    """Another API, and the keys and bodies that it was sent. It answers 401 to any other key."""
    received: list[tuple[str, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        received.append((request.headers.get("authorization", ""), await request.read()))
        known = received[-1][0] == "Bearer sk-other"
        if known:
            return web.json_response({"from": "the other"})
        return web.json_response({"error": "Unauthorized"}, status=401)

    app = web.Application(client_max_size=64 * MIB)
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", received
    await runner.cleanup()


async def with_key(gateway: GatewayProcess, http: httpx.AsyncClient) -> dict[str, str]:
    """Give the gateway its first key, which may pass through. Returns the header."""
    key, digest = new_key()
    grant = ApiKey(app="shop", digest=digest, created_at=datetime.now(UTC), pass_through=True)
    write_keys(gateway.settings.keys_file, [grant])

    async def is_closed() -> bool:
        return (await http.get("/v1/models")).status_code == 401

    await until(is_closed)
    return {"authorization": f"Bearer {key}"}


async def test_models_that_are_no_task_pass_through_and_only_their_observation_is_in_kafka(
    backends: GatewayBackends, other: tuple[str, list[tuple[str, bytes]]]
) -> None:
    url, received = other
    passing = {
        "RATCHET_GATEWAY_PASS_URL": f"{url}/v1", "RATCHET_GATEWAY_PASS_MODELS": "gpt-*",
        "RATCHET_GATEWAY_PASS_KEY": "sk-other",
    }  # fmt: skip
    body = b'{ "model":"gpt-9", "stream":false,"messages":[{"role":"user","content":"what nobody may keep"}] }'
    async with backends.gateway(**passing) as gateway, gateway.http() as http:
        assert (await http.post(CHAT, content=body)).status_code == 404  # Without keys nothing passes.
        headers = await with_key(gateway, http)
        response = await http.post(CHAT, content=body, headers=headers)
        assert (response.status_code, response.json()) == (200, {"from": "the other"})
        assert received == [("Bearer sk-other", body)]

        async def observed() -> list[RequestObserved]:
            records = await read_topic(backends.settings, "requests.observed.v1")
            found = [RequestObserved.model_validate_json(value) for _, value in records]
            return [event for event in found if event.task == NO_TASK]

        await until(observed)
        (event,) = await observed()
        assert (event.status, event.variant, event.user_hash) == (200, Variant.EXTERNAL, None)
        assert response.headers["x-request-id"] in event.prediction_id
        records = await read_topic(backends.settings, "predictions.logged.v1")
        assert not any(b"what nobody may keep" in value for _, value in records)
        assert "what nobody may keep" not in (gateway.home / "gateway.log").read_text()


async def test_large_bodies_pass_and_those_over_a_limit_or_without_a_key_see_why(backends: GatewayBackends) -> None:
    async with backends.gateway() as gateway, gateway.http() as http:
        headers = await with_key(gateway, http)
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (24 * MIB)}}
        body = {"model": backends.task, "messages": [{"role": "user", "content": [picture]}]}
        for sent, size, status in ((headers, 0, 200), ({}, 24 * MIB, 401), (headers, 33 * MIB, 413)):
            content = {"content": b" " * size} if size else {"json": body}
            assert (await http.post(CHAT, headers=sent, **content, timeout=PATIENCE_SECONDS)).status_code == status  # type: ignore[arg-type]
        metrics = (await http.get("/metrics", headers=headers)).text
        assert "ratchet_gateway_body_bytes 0.0" in metrics


async def test_a_model_server_that_refuses_the_gateways_key_is_a_502_and_readyz_says_so(
    backends: GatewayBackends, other: tuple[str, list[tuple[str, bytes]]]
) -> None:
    url, _ = other
    async with backends.gateway(RATCHET_VLLM=url, RATCHET_VLLM_KEY="sk-other") as gateway, gateway.http() as http:
        body = {"model": backends.task, "messages": [{"role": "user", "content": "hello"}]}
        assert "answer is not a chat" in (await http.post(CHAT, json=body)).text  # It took the key.
        gateway.kill_with_shipper()
        gateway.env = {**gateway.env, "RATCHET_VLLM_KEY": "sk-wrong"}
        gateway.start()

        async def is_reported() -> bool:
            try:
                return "refuse the gateway's key" in (await http.get("/readyz")).text
            except httpx.TransportError:
                return False

        await until(is_reported)
        refused = await http.post(CHAT, json=body)
        assert (refused.status_code, "RATCHET_VLLM_KEY" in refused.text) == (502, True)
        assert "sk-wrong" not in (gateway.home / "gateway.log").read_text() + refused.text
