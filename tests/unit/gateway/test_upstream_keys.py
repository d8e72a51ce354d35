"""Model servers that need a key: it goes with every request and probe, and its refusal is never the client's mistake.

The servers behave as `vllm serve --api-key` does: 401 and `{"error": "Unauthorized"}` without the key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from services.gateway.observability.metrics import Metrics
from services.gateway.settings import GatewaySettings
from services.gateway.upstreams.replicas import Replicas
from services.gateway.upstreams.upstream import KeyRefused, ServerKey
from shared.errors import ConfigurationError
from shared.model.inference import InferenceClient
from tests.unit.gateway.conftest import PATIENT_LIMITS, FakeUpstream, chat_completion, serving
from tests.waiting import PATIENCE_SECONDS

KEY = "sk-of-vllm"
CHAT = "/v1/chat/completions"


class Server:
    """A model server with a key. `asked`: the keys that it was sent, by path."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.asked: list[tuple[str, str]] = []
        self.status = 401
        self.url = ""

    async def serve(self, request: web.Request) -> web.Response:
        sent = request.headers.get("authorization", "")
        self.asked.append((request.path, sent))
        if sent != f"Bearer {self._key}":
            return web.json_response({"error": "Unauthorized"}, status=self.status)
        if request.method == "GET":
            return web.json_response({"data": [{"id": "small"}]})
        return web.json_response(chat_completion("refund", [-0.1]))


@pytest.fixture
async def servers() -> AsyncIterator[list[Server]]:
    """The first has the key, the second another."""
    made, runners = [Server(KEY), Server("sk-other")], []
    for server in made:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", server.serve)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runners[-1].addresses[0][1]}"
    yield made
    for runner in runners:
        await runner.cleanup()


def replicas_of(*servers: Server, key: str = KEY) -> Replicas:
    return Replicas([server.url for server in servers], PATIENT_LIMITS, Metrics(), key=ServerKey(key))


async def test_requests_and_probes_have_the_key(servers: list[Server]) -> None:
    replicas = replicas_of(servers[0])
    probing = asyncio.create_task(replicas.watch_forever())
    assert orjson.loads(await replicas.post(CHAT, b"{}"))["choices"]
    async with replicas.stream(CHAT, b"{}") as pieces:
        assert b"refund" in b"".join([piece async for piece in pieces])
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(servers[0].asked) < 3:
            await asyncio.sleep(0.01)
    assert {path for path, _ in servers[0].asked} == {CHAT, "/v1/models"}
    assert {sent for _, sent in servers[0].asked} == {f"Bearer {KEY}"}
    assert not replicas.refuses_key
    probing.cancel()
    await replicas.close()


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_a_502_to_the_client_and_one_line_in_the_log(
    servers: list[Server], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    servers[0].status = status
    replicas = replicas_of(servers[0], key="sk-wrong")
    with caplog.at_level(logging.WARNING):
        async with serving(replicas=replicas) as gateway:
            for stream in (False, True):
                response = await gateway.ask(stream=stream)
                error = response.json()["error"]
                assert (response.status_code, error["code"]) == (502, "upstream_key_refused")
                assert "RATCHET_VLLM_KEY" in error["message"]
                assert "www-authenticate" not in response.headers
            assert [event.status for event in gateway.log.observed] == [502, 502]
    (line,) = [record.getMessage() for record in caplog.records if "refuses" in record.getMessage()]
    assert servers[0].url in line and str(status) in line
    assert "sk-wrong" not in caplog.text
    assert replicas.refuses_key
    await replicas.close()


async def test_another_replica_that_takes_the_key_answers(servers: list[Server]) -> None:
    replicas = replicas_of(*reversed(servers))
    for _ in range(4):
        assert orjson.loads(await replicas.post(CHAT, b"{}"))["choices"]
    assert not replicas.refuses_key
    await replicas.close()


async def test_no_prompt_leaves_for_the_external_api_for_want_of_a_key(servers: list[Server]) -> None:
    replicas, external = replicas_of(servers[0], key=""), FakeUpstream()
    async with serving(replicas=replicas, external=external) as gateway:
        assert [(await gateway.ask(stream=stream)).status_code for stream in (False, True)] == [502, 502]
    assert external.asked == []
    await replicas.close()


async def test_a_refused_probe_shows_without_traffic(servers: list[Server], caplog: pytest.LogCaptureFixture) -> None:
    replicas = replicas_of(servers[0], key="sk-wrong")
    await replicas._probe(next(iter(replicas._pool)))
    assert replicas.refuses_key
    assert not replicas.answered_within(60)
    assert "refuses the gateway's key with 401: correct RATCHET_VLLM_KEY" in caplog.text
    await replicas.close()


async def test_the_other_services_send_the_key_too(servers: list[Server]) -> None:
    client = InferenceClient([servers[0].url], key=KEY)
    assert await client.models(servers[0].url) == {"small"}
    await client.close()


def test_the_key_comes_from_a_setting_or_a_file_of_the_homes_secrets_and_is_in_no_repr(tmp_path: Path) -> None:
    settings = GatewaySettings(home=tmp_path, vllm_key=KEY)
    assert settings.server_key() == KEY
    assert KEY not in repr(settings) + repr(ServerKey(KEY)) + str(ServerKey(KEY).refused())
    assert GatewaySettings.load(home=tmp_path).server_key() == ""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "ratchet_vllm_key").write_text(f"{KEY}\n")
    assert GatewaySettings.load(home=tmp_path).server_key() == KEY


@pytest.mark.parametrize("key", ["a\r\nx-evil: 1", "a b", "é", "a\x00"])
def test_a_key_that_would_end_its_header_is_refused_and_not_quoted(key: str) -> None:
    with pytest.raises(ConfigurationError, match="RATCHET_VLLM_KEY has a character") as refused:
        GatewaySettings(vllm_key=key).server_key()
    assert key not in str(refused.value)


def test_a_refused_key_is_not_an_outage() -> None:
    refused = ServerKey().refused()
    assert isinstance(refused, KeyRefused)
    assert (refused.status, refused.down, refused.another_may_answer) == (502, False, True)
