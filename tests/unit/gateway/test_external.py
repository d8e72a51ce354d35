"""The external fallback API, played by a small server on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from services.gateway.settings import GatewaySettings, UpstreamLimits
from services.gateway.upstreams.external import ExternalApi, without_vllm_fields
from services.gateway.upstreams.upstream import ModelNotServed, UpstreamFailed
from shared.errors import ConfigurationError
from tests.unit.gateway.conftest import PATIENT_LIMITS
from tests.waiting import PATIENCE_SECONDS

CHAT = "/v1/chat/completions"


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
async def external(api: Api) -> AsyncIterator[ExternalApi]:
    external = ExternalApi(api.url, "sk-secret", PATIENT_LIMITS)
    yield external
    await external.close()


async def test_user_and_password_in_its_address_are_sent_to_it(api: Api) -> None:
    external = ExternalApi(api.url.replace("//", "//me:s3cret@"), "", PATIENT_LIMITS)
    await external.post(CHAT, b"{}")
    await external.close()
    assert api.asked == [("/openai/v1/chat/completions", "Basic bWU6czNjcmV0", {})]


async def test_requests_go_to_its_own_address_with_the_key_and_without_fields_of_vllm(
    api: Api, external: ExternalApi
) -> None:
    body = orjson.dumps({"model": "large", "messages": [], "top_k": 5, "temperature": 0})
    assert await external.post(CHAT, body) == b'{"from": "outside"}'
    asked = {"model": "large", "messages": [], "temperature": 0}
    assert api.asked == [("/openai/v1/chat/completions", "Bearer sk-secret", asked)]
    async with external.stream(CHAT, body) as pieces:
        assert b"".join([piece async for piece in pieces]) == b'{"from": "outside"}'
    assert api.asked[1] == api.asked[0]


def test_labels_that_vllm_would_enforce_become_an_instruction() -> None:
    messages = [{"role": "user", "content": "My card is gone"}]
    body = {"model": "m", "messages": messages, "structured_outputs": {"choice": ["refund", "card_lost"]}}
    request = orjson.loads(without_vllm_fields(orjson.dumps(body)))
    instruction, *rest = request["messages"]
    assert instruction["role"] == "system"
    assert "refund, card_lost" in instruction["content"]
    assert rest == messages
    assert set(request) == {"model", "messages"}


LABELS = {"structured_outputs": {"choice": ["refund", "card_lost"]}}
TOLD = "Answer with exactly one of these labels and nothing else: refund, card_lost"


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"input": "Gone"}, {"input": "Gone", "instructions": TOLD}),
        ({"input": ["?"], "instructions": None}, {"input": ["?"], "instructions": TOLD}),
        ({"input": "Gone", "instructions": "Sort."}, {"input": "Gone", "instructions": f"Sort.\n\n{TOLD}"}),
        ({"prompt": "Gone"}, {"prompt": f"{TOLD}\n\nGone"}),
        ({"prompt": ["Gone", "Back"]}, {"prompt": [f"{TOLD}\n\nGone", f"{TOLD}\n\nBack"]}),
        ({"prompt": ["Gone", [1, 2]]}, {"prompt": [f"{TOLD}\n\nGone", [1, 2]]}),
        ({"prompt": [1, 2]}, {"prompt": [1, 2]}),
    ],
)
def test_the_responses_and_the_completions_api_are_told_the_labels_in_their_own_fields(
    asked: dict[str, Any], sent: dict[str, Any]
) -> None:
    assert orjson.loads(without_vllm_fields(orjson.dumps(asked | LABELS))) == sent


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ({"messages": [{"role": "user", "content": "?"}], "seed": 7, "stop": "x"}, {"echo": True}),
        ({"prompt": "?", "seed": 7, "stop": "x", "echo": True}, {}),
        ({"input": "?"}, dict.fromkeys(("seed", "stop", "logit_bias", "presence_penalty", "frequency_penalty"), 1)),
    ],
    ids=["chat", "completions", "responses"],
)
def test_no_api_is_sent_fields_that_only_vllms_has(asked: dict[str, Any], more: dict[str, Any]) -> None:
    names = (
        "include_reasoning", "media_io_kwargs", "mm_payload", "repetition_detection", "request_id", "session_id",
        "return_mm_kwargs", "return_prompt_text", "return_token_offsets", "routed_experts_prompt_start",
        "stream_interval", "truncation_side", "enable_response_messages",
    )  # fmt: skip
    sent = without_vllm_fields(orjson.dumps({**asked, **more, **dict.fromkeys(names, 1)}))
    assert orjson.loads(sent) == asked


@pytest.mark.parametrize("number", [2**64, -(2**70), 0.1, 1.0])
def test_numbers_reach_the_external_api_as_they_came(number: float) -> None:
    schema = {"type": "object", "properties": {"n": {"const": number}}}
    body = {"messages": [], "seed": number, "tools": [{"type": "function", "function": {"parameters": schema}}]}
    assert without_vllm_fields(_compact(body)) == _compact(body)
    asked = {"prompt": "?", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    told = json.loads(without_vllm_fields(_compact(asked)))["prompt"]
    assert f'{{"const":{number}}}' in told


def _compact(value: Any) -> bytes:
    """JSON by the standard library, which spells integers of any size."""
    return json.dumps(value, separators=(",", ":")).encode()


def test_the_completions_api_which_has_no_formats_is_told_the_schema_in_the_prompt() -> None:
    schema = {"type": "object", "properties": {"a": {}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    told = f"Answer with JSON that this JSON Schema describes and nothing else: {orjson.dumps(schema).decode()}"
    sent = without_vllm_fields(orjson.dumps({"prompt": "?", "response_format": form}))
    assert orjson.loads(sent) == {"prompt": f"{told}\n\n?"}
    assert without_vllm_fields(b'{"prompt":"?","response_format":{"type":"json_object"}}') == b'{"prompt":"?"}'
    chat = {"messages": [], "response_format": form}
    assert orjson.loads(without_vllm_fields(orjson.dumps(chat))) == chat


def test_fields_that_anthropics_requests_add_for_vllm_are_removed() -> None:
    thought = {"role": "assistant", "content": "x", "reasoning": "Which?"}
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": [thought, "?"], "stream_options": options, "thinking_token_budget": 2_000, "watermarking": True}
    assert orjson.loads(without_vllm_fields(orjson.dumps(body))) == {
        "messages": [{"role": "assistant", "content": "x"}, "?"], "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert without_vllm_fields(b'{"prompt":"x","messages":5,"stream_options":5}') == (
        b'{"prompt":"x","messages":5,"stream_options":5}'
    )


def test_functions_are_asked_for_without_strict_arguments() -> None:
    """OpenAI refuses a whole request for one schema that its strict mode does not take; vLLM takes them all."""
    function = {"name": "f", "parameters": {"type": "object"}, "strict": True}
    for asked in (
        {"messages": [], "tools": [{"type": "function", "function": function}]},
        {"input": "?", "tools": [{"type": "function", **function}]},
    ):
        tool = orjson.loads(without_vllm_fields(orjson.dumps(asked)))["tools"][0]
        assert tool.get("function", tool) == {**tool.get("function", tool), "strict": False}


@pytest.mark.parametrize("tools", [5, [5], [None], [{}], [{"function": 5}]])
def test_tools_of_no_known_form_are_sent_as_they_came(tools: Any) -> None:
    asked = {"messages": [], "tools": tools}
    assert orjson.loads(without_vllm_fields(orjson.dumps(asked))) == asked


@pytest.mark.parametrize("choice", [[1, 2], "abc", 5, {"a": 1}])
def test_a_choice_that_is_no_list_of_texts_is_left_out(choice: Any) -> None:
    asked = {"messages": [], "structured_outputs": {"choice": choice}}
    assert orjson.loads(without_vllm_fields(orjson.dumps(asked))) == {"messages": []}


async def test_a_refusal_of_the_gateways_own_model_is_not_reported_as_the_clients_mistake(
    api: Api, external: ExternalApi
) -> None:
    api.status, api.answer_text = 404, '{"error": {"message": "no such thing"}}'
    for asking in (external.post(CHAT, b"{}"), external.stream(CHAT, b"{}").__aenter__()):
        with pytest.raises(UpstreamFailed, match="refused the gateway: no such thing") as caught:
            await asking
        assert (caught.value.status, isinstance(caught.value, ModelNotServed)) == (502, False)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_of_the_gateways_own_key_is_a_502_that_names_the_setting_and_quotes_nothing(
    api: Api, external: ExternalApi, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    api.status, api.answer_text = status, '{"error": {"message": "Incorrect API key provided: sk-secret"}}'
    for asking in (external.post(CHAT, b"{}"), external.stream(CHAT, b"{}").__aenter__()):
        with pytest.raises(UpstreamFailed, match=r"external API refused .* RATCHET_GATEWAY_FALLBACK_KEY") as caught:
            await asking
        assert (caught.value.status, caught.value.raw, caught.value.down) == (502, b"", False)
    (line,) = [record.getMessage() for record in caplog.records if "refuses" in record.getMessage()]
    assert str(status) in line
    assert "sk-secret" not in line


async def test_an_invalid_request_is_reported_as_the_clients_mistake(api: Api, external: ExternalApi) -> None:
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
    external = ExternalApi(f"{server}{path}", "sk-secret", PATIENT_LIMITS)
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


def test_a_stored_prompt_of_the_responses_api_is_no_completion() -> None:
    schema = {"type": "array", "items": {"type": "string"}}
    asked = {"model": "m", "input": "hi", "prompt": {"id": "p"},
             "text": {"format": {"type": "json_schema", "name": "labels", "schema": schema}}}  # fmt: skip
    sent = orjson.loads(without_vllm_fields(orjson.dumps(asked)))
    assert "format" not in sent["text"] and sent["prompt"] == {"id": "p"}


async def test_an_api_that_is_away_or_silent_is_told_from_one_that_answers() -> None:
    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n")

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    limits = UpstreamLimits(total=0.3, piece=0.3, stream=PATIENCE_SECONDS)
    external = ExternalApi(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "", limits)
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
