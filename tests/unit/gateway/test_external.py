"""The external fallback API, played by a small server on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from services.gateway.settings import GatewaySettings, UpstreamLimits
from services.gateway.upstreams.outside import OutsideApi
from services.gateway.upstreams.upstream import ServerKey, UpstreamFailed
from shared.errors import ConfigurationError
from tests.waiting import PATIENCE_SECONDS

CHAT = "/v1/chat/completions"
KEY = ServerKey("sk-secret", "the fallback", "RATCHET_GATEWAY_FALLBACK_KEY")


class Api:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.status, self.answer_text = 200, '{"from": "outside"}'
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        key = request.headers.get("authorization", "")
        self.asked.append((request.path, key, orjson.loads(await request.read())))
        return web.Response(status=self.status, text=self.answer_text)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api, app = Api(), web.Application()
    app.router.add_post("/{rest:.*}", api.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}/openai/v1"
    yield api
    await runner.cleanup()


@pytest.fixture
async def external(api: Api) -> AsyncIterator[OutsideApi]:
    external = OutsideApi(api.url, KEY, UpstreamLimits())
    yield external
    await external.close()


async def test_user_and_password_in_its_address_are_sent_to_it(api: Api) -> None:
    external = OutsideApi(api.url.replace("//", "//me:s3cret@"), ServerKey(), UpstreamLimits())
    await external.post(CHAT, b"{}")
    await external.close()
    assert api.asked == [("/openai/v1/chat/completions", "Basic bWU6czNjcmV0", {})]


async def test_requests_go_to_its_own_address_with_the_key(api: Api, external: OutsideApi) -> None:
    body = orjson.dumps({"model": "large", "messages": [], "top_k": 5, "temperature": 0})
    assert await external.post(CHAT, body) == b'{"from": "outside"}'
    asked = {"model": "large", "messages": [], "top_k": 5, "temperature": 0}
    assert api.asked == [("/openai/v1/chat/completions", "Bearer sk-secret", asked)]
    async with external.stream(CHAT, body) as pieces:
        assert b"".join([piece async for piece in pieces]) == b'{"from": "outside"}'
    assert api.asked[1] == api.asked[0]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_of_the_gateways_own_key_is_a_502_that_names_the_setting_and_quotes_nothing(
    api: Api, external: OutsideApi, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    api.status, api.answer_text = status, '{"error": {"message": "Incorrect API key provided: sk-secret"}}'
    for asking in (external.post(CHAT, b"{}"), external.stream(CHAT, b"{}").__aenter__()):
        with pytest.raises(UpstreamFailed, match=r"the fallback refused .* RATCHET_GATEWAY_FALLBACK_KEY") as caught:
            await asking
        assert (caught.value.status, caught.value.raw, caught.value.down) == (502, b"", False)
    (line,) = [record.getMessage() for record in caplog.records if "refuses" in record.getMessage()]
    assert str(status) in line
    assert "sk-secret" not in line


async def test_an_invalid_request_is_reported_as_the_clients_mistake(api: Api, external: OutsideApi) -> None:
    api.status, api.answer_text = 400, '{"error": {"message": "too long"}}'
    with pytest.raises(UpstreamFailed, match=r"^too long$") as caught:
        await external.post(CHAT, b"{}")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("", "/v1/chat/completions"), ("/", "/v1/chat/completions"), ("/v1/", "/v1/chat/completions"),
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"), ("/api/paas/v4", "/api/paas/v4/chat/completions"),
    ],
)  # fmt: skip
async def test_the_address_is_the_base_url_of_openai_clients(api: Api, path: str, asked: str) -> None:
    server = api.url.removesuffix("/openai/v1")
    external = OutsideApi(f"{server}{path}", KEY, UpstreamLimits())
    await external.post(CHAT, b"{}")
    await external.close()
    assert [path for path, _, _ in api.asked] == [asked]


def test_its_key_comes_from_a_setting_or_a_file_of_the_homes_secrets_and_is_never_in_a_repr(tmp_path: Path) -> None:
    settings = GatewaySettings(home=tmp_path, gateway_fallback_key="sk-secret")
    assert settings.fallback_key() == "sk-secret"
    assert "sk-secret" not in repr(settings)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "ratchet_gateway_fallback_key").write_text("sk-file\n")
    assert GatewaySettings.load(home=tmp_path).fallback_key() == "sk-file"


def test_the_fallback_is_off_by_default_and_needs_both_settings(tmp_path: Path) -> None:
    assert GatewaySettings(home=tmp_path).fallback_model is None
    for half in ({"gateway_fallback_url": "https://x"}, {"gateway_fallback_model": "m"}):
        with pytest.raises(ConfigurationError, match="an address and a model"):
            GatewaySettings(home=tmp_path, **half).fallback_model  # noqa: B018


async def test_an_api_that_is_away_or_silent_is_told_from_one_that_answers() -> None:
    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n")

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    limits = UpstreamLimits(total=0.3, piece=0.3, stream=PATIENCE_SECONDS)
    external = OutsideApi(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", ServerKey(), limits)
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(UpstreamFailed) as late:
            await external.post(CHAT, b"{}")
        with pytest.raises(UpstreamFailed) as silent:
            async with external.stream(CHAT, b"{}") as pieces:
                assert await anext(pieces) == b"data:"
                await anext(pieces)
    server.close()
    with pytest.raises(UpstreamFailed) as away:
        await external.post(CHAT, b"{}")
    await external.close()
    failed = [(caught.value.status, caught.value.reason) for caught in (late, silent, away)]
    assert failed == [(504, "timeout"), (504, "timeout"), (503, "away")]
