"""Models that are no task pass through: as they are, for the keys that may, and without a trace of their text.

The API behind is a server on a real socket that keeps what it is sent, byte for byte.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import orjson
import pytest
from pydantic import ValidationError

from schemas.base import Variant
from schemas.tasks import TaskSpec
from services.gateway.asgi.exchange import ON_DISCONNECT
from services.gateway.auth.grants import AccessControl
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from services.gateway.routing.passed_models import PassedModels
from services.gateway.settings import GatewaySettings, UpstreamLimits
from services.gateway.upstreams.outside import OutsideApi
from services.gateway.upstreams.upstream import ServerKey
from shared.errors import ConfigurationError
from tests.unit.gateway.conftest import PATIENT_LIMITS, SUPPORT, Gateway, serving
from tests.waiting import until

CHAT = "/v1/chat/completions"
STREAMED = (CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages")
PATHS = (*STREAMED, "/v1/messages/count_tokens", "/v1/rerank", "/v2/rerank", "/rerank")
SECRET = "the prompt that nobody may keep"
BODY = (
    b'{ "model" : "gpt-4o",  "stream":false, "seed": 1.50, "user":"ann@example.com", "model2":"\\u0041",\n'
    b'"messages": [{"role":"user","content":"%b"}]}' % SECRET.encode()
)
"""Written as no encoder would: what arrives must be this, byte for byte."""
ANSWER = b'{"id":"x",  "choices": [ ],"big":123456789012345678901234567890 }'


@dataclass
class Api:
    """Answers every request with `answer`, a raw response, and keeps the requests' heads and bodies."""

    answer: bytes = b""
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    url: str = ""
    cut: bool = False

    def says(self, body: bytes, status: bytes = b"200 OK", *headers: bytes) -> None:
        lines = b"".join(line + b"\r\n" for line in headers or (b"content-type: application/json",))
        self.answer = b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, lines, len(body), body)

    def streams(self, *pieces: bytes, cut: bool = False) -> None:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; x=y\r\ntransfer-encoding: chunked\r\n\r\n"
        self.answer, self.cut = head + chunks + (b"" if cut else b"0\r\n\r\n"), cut

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(length))
                writer.write(self.answer)
                await writer.drain()
                if self.cut:
                    return
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@dataclass
class Passing:
    gateway: Gateway
    api: Api
    keys: dict[str, str]

    async def post(self, path: str = CHAT, body: bytes = BODY, app: str = "agents", **headers: str) -> httpx.Response:
        sent = {"authorization": f"Bearer {self.keys[app]}"} if app else {}
        return await self.gateway.http.post(path, content=body, headers={**sent, **headers})


@asynccontextmanager
async def passing(folder: Path, *models: str, specs: tuple[TaskSpec, ...] = (SUPPORT,)) -> AsyncIterator[Passing]:
    """A gateway whose keys `agents` and `narrow` may pass through, `narrow` with one task, and `plain` may not."""
    made = {app: new_key() for app in ("agents", "narrow", "plain")}
    grants: dict[str, dict[str, Any]] = {
        "agents": {"pass_through": True}, "narrow": {"pass_through": True, "tasks": ("haiku",)}, "plain": {},
    }  # fmt: skip
    keys = [
        ApiKey(app=app, digest=made[app][1], created_at=datetime.now(UTC), **grant) for app, grant in grants.items()
    ]
    write_keys(folder / "keys.json", keys)
    access = AccessControl(folder / "keys.json", folder / "had-keys")
    access.reload()
    api = Api()
    api.says(ANSWER)
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/openai/v1"
    key = ServerKey("sk-own", "the API", "RATCHET_GATEWAY_PASS_KEY")
    outside = OutsideApi(url, key, PATIENT_LIMITS)
    passed = PassedModels(models or ("gpt-4o", "claude-*"))
    async with serving(access=access, passing=(outside, passed), specs=specs) as gateway:
        yield Passing(gateway, api, {app: key for app, (key, _) in made.items()})
    await outside.close()
    server.close()


@pytest.mark.parametrize("path", PATHS)
async def test_body_and_answer_pass_byte_for_byte(tmp_path: Path, path: str) -> None:
    async with passing(tmp_path) as door:
        response = await door.post(path)
        assert (response.status_code, response.content) == (200, ANSWER)
        assert response.headers["content-type"] == "application/json"
        assert door.api.bodies == [BODY]
        assert door.api.heads[0].startswith(b"POST /openai%b HTTP/1.1\r\n" % path.encode())
        assert door.gateway.upstream.asked == []


@pytest.mark.parametrize("path", STREAMED)
async def test_a_stream_passes_byte_for_byte(tmp_path: Path, path: str) -> None:
    pieces = [b"event: a\ndata: {}\n", b'\ndata: {"x":  1}\r\n\r\n: comment\n\n', b"data: [DONE]\n\n"]
    async with passing(tmp_path) as door:
        door.api.streams(*pieces)
        response = await door.post(path, BODY.replace(b"false", b"true"))
        assert response.content == b"".join(pieces)
        assert response.headers["content-type"] == "text/event-stream; x=y"
        assert [event.status for event in door.gateway.log.observed] == [200]


@pytest.mark.parametrize("name", ["authorization", "api-key", "x-api-key"])
async def test_the_clients_key_and_cookies_never_leave_and_the_gateways_own_key_does(tmp_path: Path, name: str) -> None:
    async with passing(tmp_path) as door:
        key = door.keys["agents"]
        value = f"Bearer {key}" if name == "authorization" else key
        headers = {name: value, "cookie": "session=1", "x-forwarded-for": "10.0.0.9", "openai-beta": "assistants=v2"}
        assert (await door.gateway.http.post(CHAT, content=BODY, headers=headers)).status_code == 200
        (head,) = door.api.heads
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line]
        assert sorted(names) == [
            b"accept",
            b"accept-encoding",
            b"authorization",
            b"connection",
            b"content-length",
            b"content-type",
            b"host",
            b"openai-beta",
            b"user-agent",
            b"x-request-id",
        ]
        assert b"authorization: Bearer sk-own\r\n" in head.replace(b"Authorization", b"authorization")
        assert key.encode() not in head


async def test_nothing_of_the_text_is_recorded_but_one_observation_of_the_reserved_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with passing(tmp_path) as door:
        await door.post(traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
        assert door.gateway.log.events == []
        (event,) = door.gateway.log.observed
        assert (event.task, event.task_revision, event.variant) == ("pass-through", "pass-through", Variant.EXTERNAL)
        assert (event.status, event.user_hash, event.subject) == (200, None, None)
        metrics = await door.gateway.http.get("/metrics", headers={"authorization": f"Bearer {door.keys['plain']}"})
        assert 'ratchet_gateway_answers_total{task="pass-through",variant="external"} 1.0' in metrics.text
        for text in (metrics.text, repr(door.gateway.log.appends), caplog.text):
            for part in (SECRET, "gpt-4o", "ann@example.com"):
                assert part not in text


@pytest.mark.parametrize(
    ("app", "model", "status"),
    [
        ("agents", "gpt-4o", 200), ("agents", "claude-opus", 200), ("agents", "gpt-4o-mini", 404),
        ("narrow", "gpt-4o", 200), ("narrow", "gpt-4o-mini", 403), ("narrow", "support", 403),
        ("plain", "gpt-4o", 404), ("", "gpt-4o", 401),
    ],
)  # fmt: skip
async def test_a_model_passes_only_for_the_keys_and_by_the_names_that_may(
    tmp_path: Path, app: str, model: str, status: int
) -> None:
    async with passing(tmp_path) as door:
        response = await door.post(body=BODY.replace(b"gpt-4o", model.encode()), app=app)
        assert response.status_code == status
        assert len(door.api.bodies) == (1 if status == 200 else 0)
        if status == 404:
            assert response.json()["error"]["code"] == "model_not_found"


async def test_a_task_wins_over_a_pattern_that_matches_it(tmp_path: Path) -> None:
    async with passing(tmp_path, "*") as door:
        assert (await door.post(body=BODY.replace(b"gpt-4o", b"support"))).status_code == 200
        assert (len(door.gateway.upstream.asked), door.api.bodies) == (1, [])


async def test_nothing_passes_before_the_tasks_are_known(tmp_path: Path) -> None:
    """A prompt of a task that is still being read would leave."""
    async with passing(tmp_path, "*", specs=()) as door:
        assert (await door.post()).status_code == 503
        assert door.api.bodies == []


async def test_without_keys_nothing_passes(tmp_path: Path) -> None:
    outside = OutsideApi("http://127.0.0.1:9", ServerKey(), UpstreamLimits())
    async with serving(passing=(outside, PassedModels(["*"]))) as gateway:
        assert (await gateway.http.post(CHAT, content=BODY)).status_code == 404
        assert "gpt-4o" not in (await gateway.http.get("/v1/models")).text


@pytest.mark.parametrize(("stream", "path"), [(b"false", CHAT), (b"true", CHAT), (b"false", "/v1/messages")])
async def test_the_apis_own_error_passes_byte_for_byte(tmp_path: Path, stream: bytes, path: str) -> None:
    error = b'{"error" : {"message":"slow down","type":"requests","param":null,"code":"rate"}, "more": 1}'
    async with passing(tmp_path) as door:
        door.api.says(error, b"429 Too Many Requests", b"retry-after: 7")
        for _ in range(2):  # One model's limit is not another's: the API is asked again.
            response = await door.post(path, BODY.replace(b"false", stream))
            assert (response.status_code, response.content) == (429, error)
            assert response.headers["retry-after"] == "7"
        door.api.says(b'{"error":"no such model"}', b"404 Not Found")
        assert (await door.post(path)).status_code == 404
        door.api.says(b"<html>bad gateway", b"502 Bad Gateway", b"content-type: text/html")
        response = await door.post(path)
        assert (response.status_code, response.content) == (502, b"<html>bad gateway")
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert [event.status for event in door.gateway.log.observed] == [429, 429, 404, 502]


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"403 Forbidden"])
async def test_a_refusal_of_the_gateways_key_is_a_502_that_quotes_nothing(tmp_path: Path, status: bytes) -> None:
    async with passing(tmp_path) as door:
        door.api.says(b'{"error":{"message":"Incorrect API key provided: sk-own"}}', status)
        for stream in (b"false", b"true"):
            response = await door.post(body=BODY.replace(b"false", stream))
            assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_key_refused")
            assert "RATCHET_GATEWAY_PASS_KEY" in response.text
            assert "sk-own" not in response.text


async def test_a_stream_that_breaks_off_ends_with_an_error(tmp_path: Path) -> None:
    async with passing(tmp_path) as door:
        door.api.streams(b'data: {"a":', cut=True)
        response = await door.post(body=BODY.replace(b"false", b"true"))
        assert response.content.startswith(b'data: {"a":\n\ndata: ')
        assert orjson.loads(response.content.split(b"data: ")[-1])["error"]["code"] == "upstream_lost"
        assert [event.status for event in door.gateway.log.observed] == [502]


async def test_a_client_that_leaves_is_observed_and_its_bytes_are_released(tmp_path: Path) -> None:
    async with passing(tmp_path) as door:
        door.api.answer = b""
        leaving: list[Callable[[], None]] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": BODY}

        headers = [(b"authorization", f"Bearer {door.keys['agents']}".encode())]
        scope = {
            "type": "http", "method": "POST", "path": CHAT, "headers": headers,
            "extensions": {ON_DISCONNECT: leaving.append},
        }  # fmt: skip
        request = asyncio.create_task(door.gateway.app(scope, receive, AsyncMock()))
        await until(lambda: door.api.bodies)
        assert door.gateway.in_flight.total == len(BODY)
        leaving[0]()
        await request
        assert [(event.status, event.gateway_stopped) for event in door.gateway.log.observed] == [(499, False)]
        assert door.gateway.in_flight.total == 0


async def test_a_request_that_the_gateways_stop_breaks_off_is_observed_as_that(tmp_path: Path) -> None:
    async with passing(tmp_path) as door:
        door.api.answer = b""
        request = asyncio.create_task(door.post())
        await until(lambda: door.api.bodies)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert [(event.status, event.gateway_stopped) for event in door.gateway.log.observed] == [(503, True)]
        assert door.gateway.in_flight.total == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_is_cancelled_while_its_record_waits_is_observed_once(
    tmp_path: Path, stream: bool
) -> None:
    async with passing(tmp_path) as door:
        if stream:
            door.api.streams(b"data: {}\n\n", b"data: [DONE]\n\n")
        door.gateway.log.cancels = True
        request = asyncio.create_task(door.post(body=BODY.replace(b"false", b"true") if stream else BODY))
        await asyncio.gather(request, return_exceptions=True)
        assert [event.status for event in door.gateway.log.observed] == [200]


async def test_models_lists_the_names_that_pass_for_the_keys_that_may(tmp_path: Path) -> None:
    names: dict[str, list[str]] = {}
    async with passing(tmp_path, "gpt-4o", "meta/llama", "claude-*", "support") as door:
        for app, key in door.keys.items():
            headers = {"authorization": f"Bearer {key}"}
            listed = (await door.gateway.http.get("/v1/models", headers=headers)).json()["data"]
            names[app] = [model["id"] for model in listed]
            for name in ("meta/llama", "claude-3"):
                found = await door.gateway.http.get(f"/v1/models/{name}", headers=headers)
                assert found.status_code == (404 if app == "plain" else 200)
    assert names == {
        "agents": ["support", "gpt-4o", "meta/llama"], "narrow": ["gpt-4o", "meta/llama"], "plain": ["support"],
    }  # fmt: skip


def test_no_task_can_have_the_reserved_name() -> None:
    with pytest.raises(ValidationError, match="reserved"):
        TaskSpec(**SUPPORT.model_dump() | {"name": "pass-through"})


def test_pass_through_is_off_by_default_and_needs_models_and_an_address(tmp_path: Path) -> None:
    assert GatewaySettings(home=tmp_path).pass_models == ()
    whole = GatewaySettings(home=tmp_path, gateway_pass_url="http://x/v1", gateway_pass_models=" gpt-4o, o*,")
    assert whole.pass_models == ("gpt-4o", "o*")
    for half in ({"gateway_pass_url": "https://x"}, {"gateway_pass_models": "m"}):
        with pytest.raises(ConfigurationError, match="need an address"):
            GatewaySettings(home=tmp_path, **half).pass_models  # noqa: B018


@pytest.mark.parametrize(
    ("models", "model", "passes"),
    [
        ((), "", False), (("gpt-4o",), "gpt-4o", True), (("gpt-4o",), "gpt-4oo", False), (("gpt.4",), "gptx4", False),
        (("gpt-*",), "gpt-", True), (("gpt-*",), "xgpt-4", False), (("a", "b*c"), "bxc", True),
        (("*",), "any/thing", True),
        (("[a]",), "a", False),
    ],
)  # fmt: skip
def test_patterns_match_whole_names(models: tuple[str, ...], model: str, passes: bool) -> None:
    assert (model in PassedModels(models)) is passes


async def test_a_gzip_body_passes_unpacked(tmp_path: Path) -> None:
    async with passing(tmp_path, "gpt-4o") as setup:
        response = await setup.post(body=gzip.compress(BODY), **{"content-encoding": "gzip"})
        assert (response.status_code, response.content) == (200, ANSWER)
        assert setup.api.bodies == [BODY]
        assert b"content-encoding" not in setup.api.heads[0].lower()
