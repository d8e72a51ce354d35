"""Anthropic's own client against the gateway on a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from pydantic import BaseModel

from services.gateway.auth.grants import AccessControl
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from services.gateway.observability.metrics import Metrics
from services.gateway.settings import UpstreamLimits
from services.gateway.upstreams.replicas import Replicas
from services.gateway.upstreams.upstream import UpstreamFailed
from shared.conversation import replay_request
from tests.unit.gateway.conftest import REFUND, USAGE, FakeUpstream, chat_completion, chunk, listening, serving, sse
from tests.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

NOBODY = "http://127.0.0.1:9"
MESSAGES: list[Any] = [{"role": "user", "content": "I want my money back"}]
ASKED: Any = {"model": "support", "max_tokens": 50, "messages": MESSAGES}
TOOLS: Any = [{"name": "weather", "description": "Of a city.", "input_schema": {"type": "object"}}]
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
async def client(address: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with _client(address) as client:
        yield client


def _client(address: str, key: str = "any", **more: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=address.removesuffix("/v1"), api_key=key, max_retries=0, **more)


async def test_the_sync_client_works(gateway: Gateway, address: str) -> None:
    def ask() -> anthropic.types.Message:
        with anthropic.Anthropic(base_url=address.removesuffix("/v1"), api_key="any") as client:
            return client.messages.create(**ASKED)

    message = await asyncio.to_thread(ask)
    (event,) = gateway.log.events
    assert [(block.type, block.text) for block in message.content] == [("text", "refund")]
    assert (message.id, message.model, message.stop_reason) == (event.answers[0].prediction_id, "support", "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (20, 2)


async def test_labels_are_enforced_and_confidence_is_measured(
    gateway: Gateway, client: anthropic.AsyncAnthropic
) -> None:
    raw = await client.messages.with_raw_response.create(
        **ASKED, tools=TOOLS, stop_sequences=["."], extra_body={"temperature": 1.0}
    )
    (asked,), (event,) = gateway.upstream.asked, gateway.log.events
    assert gateway.upstream.paths == ["/v1/chat/completions"]
    assert asked["structured_outputs"] == {"choice": ["refund", "card_lost"]}
    assert (asked["temperature"], asked["max_tokens"]) == (0.0, 12)
    assert not {"tools", "stop"} & asked.keys()
    assert asked["messages"][0] == {"role": "system", "content": "Name the intent."}
    assert float(raw.headers["x-ratchet-confidence"]) == pytest.approx(event.answers[0].confidence.score, abs=1e-6)
    assert raw.headers["x-ratchet-prediction-id"] == event.answers[0].prediction_id
    assert (event.call.api, event.call.constrained) == ("messages", True)


@pytest.mark.parametrize("model", ["support", "haiku"])
async def test_a_stream_has_the_answer_the_usage_and_who_answered(
    gateway: Gateway, client: anthropic.AsyncAnthropic, model: str
) -> None:
    async with client.messages.stream(**{**ASKED, "model": model}) as stream:
        events = [event async for event in stream]
        message = await stream.get_final_message()
    (event,) = gateway.log.events
    assert [event.text for event in events if event.type == "text"] == ["ref", "und"]
    assert (message.content[0].text, message.stop_reason) == ("refund", "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (20, 2)
    assert message.id == event.answers[0].prediction_id
    (last,) = [event for event in events if event.type == "message_delta"]
    assert last.ratchet["prediction_id"] == message.id
    assert last.ratchet["confidence"] == pytest.approx(event.answers[0].confidence.score)
    assert (event.call.stream, event.answers[0].text, event.usage.prompt_tokens) == (True, "refund", 20)


def _calls(turn: int) -> list[dict[str, Any]]:
    """Two parallel calls of the chat API."""
    return [
        {"id": f"call_{turn}{n}", "type": "function", "function": {"name": "weather", "arguments": f'{{"n": {n}}}'}}
        for n in "12"
    ]


def _streamed_calls(turn: int) -> list[bytes]:
    pieces = []
    for index, call in enumerate(_calls(turn)):
        function = call["function"]
        begun = {"index": index, **call, "function": {"name": function["name"], "arguments": ""}}
        pieces.append({"tool_calls": [begun]})
        for part in (function["arguments"][:4], function["arguments"][4:]):
            pieces.append({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    text = chunk({"role": "assistant", "content": "I look."})
    return sse(text, *(chunk(piece) for piece in pieces), chunk({}, finish="tool_calls", logprob=None), USAGE)


@pytest.mark.parametrize("streamed", [False, True])
async def test_three_turns_with_parallel_tool_calls(
    gateway: Gateway, client: anthropic.AsyncAnthropic, streamed: bool
) -> None:
    conversation = list(MESSAGES)
    asked: Any = {"model": "haiku", "max_tokens": 50, "tools": TOOLS}
    for turn in range(3):
        gateway.upstream.answer = chat_completion("I look.", [-0.1], tool_calls=_calls(turn))
        gateway.upstream.answer["choices"][0]["finish_reason"] = "tool_calls"
        gateway.upstream.pieces = list(_streamed_calls(turn))
        if streamed:
            async with client.messages.stream(**asked, messages=conversation) as stream:
                message = await stream.get_final_message()
        else:
            message = await client.messages.create(**asked, messages=conversation)
        assert (message.stop_reason, message.content[0].text) == ("tool_use", "I look.")
        used: Any = message.content[1:]
        assert [(block.id, block.name, block.input) for block in used] == [
            (f"call_{turn}1", "weather", {"n": 1}), (f"call_{turn}2", "weather", {"n": 2}),
        ]  # fmt: skip
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": f"sunny {block.input['n']}"} for block in used
        ]
        conversation += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    roles = [message["role"] for message in gateway.upstream.asked[-1]["messages"]]
    assert roles == ["system", "user", *["assistant", "tool", "tool"] * 2]
    event = gateway.log.events[-1]
    logged_call, result = event.call.messages[2].tool_calls[1], event.call.messages[4]
    assert (logged_call.id, logged_call.name, logged_call.arguments) == ("call_02", "weather", '{"n":2}')
    assert (result.role, result.tool_call_id, result.content) == ("tool", "call_02", "sunny 2")
    assert [call.id for call in event.answers[0].tool_calls] == ["call_21", "call_22"]
    assert event.call.is_whole
    assert event.answers[0].finish_reason == "tool_calls"


async def test_an_event_has_the_request_as_it_was_sent(gateway: Gateway, client: anthropic.AsyncAnthropic) -> None:
    called = [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}]
    result = [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}, {"type": "text", "text": "And?"}]
    messages = [*MESSAGES, {"role": "assistant", "content": called}, {"role": "user", "content": result}]
    await client.messages.create(
        model="haiku", max_tokens=50, messages=messages, system="Be brief.", stop_sequences=["END"], tools=TOOLS,
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 5}, metadata={"user_id": "ann"},
        tool_choice={"type": "any", "disable_parallel_tool_use": True}, thinking={"type": "disabled"},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
    )  # fmt: skip
    (asked,), (event,) = gateway.upstream.asked, gateway.log.events
    path, again = replay_request(event.call)
    sent = {name: value for name, value in asked.items() if name not in ("model", "logprobs")}
    assert (path, again) == (gateway.upstream.paths[0], sent)
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("name", ["user", "safety_identifier", "metadata"])
async def test_the_user_is_the_first_that_is_named_and_reaches_no_model_server(
    gateway: Gateway, client: anthropic.AsyncAnthropic, name: str
) -> None:
    names = ["user", "safety_identifier", "metadata"]
    fields: Any = {each: {"user_id": each} if each == "metadata" else each for each in names[names.index(name) :]}
    await client.messages.create(**ASKED, extra_body=fields, extra_headers={"x-ratchet-user": "header"})
    await gateway.ask(user=name)
    messages, chat = gateway.log.events
    assert messages.user_hash == chat.user_hash
    assert not {*names, "user_id"} & gateway.upstream.asked[0].keys()
    assert gateway.flags.users[0] == name


async def test_a_picture_is_passed_on_unchanged_and_logged_by_reference(
    gateway: Gateway, client: anthropic.AsyncAnthropic
) -> None:
    source: Any = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    await client.messages.create(model="haiku", max_tokens=50, messages=[{"role": "user", "content": content}])
    (asked,), (event,) = gateway.upstream.asked, gateway.log.events
    assert asked["messages"][-1]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
        {"type": "text", "text": "What is it?"},
    ]
    media = event.call.messages[-1].content[0].media
    assert (media.kind, media.media_type) == ("image", "image/png")
    assert PICTURE not in event.model_dump_json()


class Poem(BaseModel):
    title: str
    lines: int


async def test_structured_outputs_are_parsed_by_the_client(gateway: Gateway, client: anthropic.AsyncAnthropic) -> None:
    gateway.upstream.says('{"title": "Pond", "lines": 3}', [-0.1])
    message = await client.messages.parse(model="haiku", max_tokens=50, messages=MESSAGES, output_format=Poem)
    assert message.parsed_output == Poem(title="Pond", lines=3)
    assert gateway.upstream.asked[0]["response_format"]["json_schema"]["schema"]["required"] == ["title", "lines"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_thoughts_and_a_stop_sequence_reach_the_client(
    gateway: Gateway, client: anthropic.AsyncAnthropic, streamed: bool
) -> None:
    ended = chunk({}, finish="stop", logprob=None)
    ended["choices"][0]["stop_reason"] = "END"
    gateway.upstream.answer = chat_completion("pond", [-0.1], reasoning="Which?")
    gateway.upstream.answer["choices"][0]["stop_reason"] = "END"
    gateway.upstream.pieces = list(sse(chunk({"reasoning": "Which?"}), chunk({"content": "pond"}), ended, USAGE))
    asked: Any = {**ASKED, "model": "haiku", "stop_sequences": ["END"]}
    if streamed:
        async with client.messages.stream(**asked) as stream:
            message = await stream.get_final_message()
    else:
        message = await client.messages.create(**asked)
    thought, text = message.content
    assert (thought.type, thought.thinking, text.text) == ("thinking", "Which?", "pond")
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
    assert gateway.log.events[0].answers[0].reasoning == "Which?"


async def test_tokens_are_counted_of_the_prompt_with_the_tasks_own(
    gateway: Gateway, client: anthropic.AsyncAnthropic
) -> None:
    gateway.upstream.answer = {"count": 42, "max_model_len": 8_192, "tokens": [1, 2]}
    counted = await client.messages.count_tokens(model="haiku", messages=MESSAGES, tools=TOOLS)
    assert counted.input_tokens == 42
    assert gateway.upstream.paths == ["/tokenize"]
    (asked,) = gateway.upstream.asked
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert (asked["model"], len(asked["tools"])) == ("small", 1)
    assert gateway.log.appends == []


@pytest.mark.parametrize("answer", [b"no JSON", {"count": "many"}, {}, []])
async def test_a_count_that_is_none_is_an_error_of_the_server(
    gateway: Gateway, client: anthropic.AsyncAnthropic, answer: Any
) -> None:
    gateway.upstream.answer = answer
    with pytest.raises(anthropic.InternalServerError, match="no count of tokens"):
        await client.messages.count_tokens(model="haiku", messages=MESSAGES)


async def test_a_server_that_counts_no_tokens_is_named(gateway: Gateway, client: anthropic.AsyncAnthropic) -> None:
    gateway.upstream.failure = UpstreamFailed(404, "the model server answered 404", "status_404")
    with pytest.raises(anthropic.InternalServerError, match="has no /tokenize") as caught:
        await client.messages.count_tokens(model="haiku", messages=MESSAGES)
    assert caught.value.error_code == "upstream_not_vllm"


FAILURES = [
    (UpstreamFailed(400, "too long", "status_400", raw=b'{"error": {"message": "4,096 tokens at most"}}'),
     anthropic.BadRequestError, "invalid_request_error", "4,096 tokens at most"),
    (UpstreamFailed(429, "busy", "status_429", retry_after=3.0),
     anthropic.RateLimitError, "rate_limit_error", "busy"),
    (UpstreamFailed(502, "no replica answers", "away"), anthropic.InternalServerError, "api_error", "no replica"),
    (UpstreamFailed(503, "no connection is free", "no_connection"),
     anthropic.ServiceUnavailableError, "overloaded_error", "no connection"),
    (UpstreamFailed(504, "no answer in time", "timeout"), anthropic.GatewayTimeoutError, "timeout_error", "in time"),
]  # fmt: skip


@pytest.mark.parametrize(("failure", "error", "kind", "message"), FAILURES)
@pytest.mark.parametrize("use", ["whole", "stream", "count"])
async def test_a_failure_of_the_server_is_the_clients_own_error(
    gateway: Gateway, client: anthropic.AsyncAnthropic, failure: Any, error: Any, kind: str, message: str, use: str
) -> None:
    gateway.upstream.failure = failure
    with pytest.raises(error, match=message) as caught:
        if use == "count":
            await client.messages.count_tokens(model="haiku", messages=MESSAGES)
        else:
            await client.messages.create(**ASKED, stream=use == "stream")
    assert caught.value.type == kind
    assert caught.value.request_id == caught.value.body["request_id"]


async def test_mistakes_are_the_clients_own_errors(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="Known tasks: haiku, support") as unknown:
        await client.messages.create(**{**ASKED, "model": "claude-opus-5"})
    assert (unknown.value.type, unknown.value.error_code) == ("not_found_error", "model_not_found")
    with pytest.raises(anthropic.BadRequestError, match="Anthropic's own tool 'web_search_20260318'"):
        await client.messages.create(**ASKED, tools=[{"type": "web_search_20260318", "name": "web_search"}])
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.role"):
        await client.messages.count_tokens(model="haiku", messages=[{"role": "tool", "content": "x"}])  # type: ignore[typeddict-item]


async def test_a_body_over_the_limit_and_another_method_have_anthropics_errors(
    gateway: Gateway, client: anthropic.AsyncAnthropic
) -> None:
    with pytest.raises(anthropic.RequestTooLargeError, match="over the limit") as large:
        await client.messages.create(model="haiku", max_tokens=9, messages=[{"role": "user", "content": "x" * 70_000}])
    assert large.value.body["error"]["type"] == "request_too_large"
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        refused = await gateway.http.get(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert refused.json()["error"]["type"] == "invalid_request_error"
        malformed = await gateway.http.post(path, content=b"{")
        assert (malformed.status_code, malformed.json()["type"]) == (400, "error")


async def test_an_error_within_a_stream_is_the_clients_own_error(
    gateway: Gateway, client: anthropic.AsyncAnthropic
) -> None:
    failures = {
        b'data: {"error": {"message": "out of memory", "code": 500}}\n\n': "out of memory",
        b"data: {}\n\n": "stream is broken",
        b'data: {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}\n\n': "begins without a name",
    }
    for piece, message in failures.items():
        gateway.upstream.pieces = [*REFUND[:2], piece]
        with pytest.raises(anthropic.APIStatusError, match=message) as caught:
            async for _ in await client.messages.create(**ASKED, stream=True):
                pass
        assert caught.value.type == "api_error"
    assert {event.answers[0].finish_reason for event in gateway.log.events} == {"upstream_cut"}


@pytest.mark.parametrize("usage", [USAGE, {**USAGE, "choices": None}], ids=["usage", "null choices"])
async def test_a_stream_that_the_model_server_ends_without_done_is_a_whole_message(
    gateway: Gateway, client: anthropic.AsyncAnthropic, usage: Any
) -> None:
    gateway.upstream.pieces = [*REFUND[:-2], *sse(usage)[:-1]]
    async with client.messages.stream(**ASKED) as stream:
        message = await stream.get_final_message()
    assert (message.content[0].text, message.stop_reason, message.usage.input_tokens) == ("refund", "end_turn", 20)
    assert [event.answers[0].finish_reason for event in gateway.log.events] == ["stop"]


@pytest.mark.parametrize("last", [REFUND[-3:], sse(chunk({"content": "."}, finish="stop"), USAGE)])
async def test_the_end_of_a_stream_waits_until_its_event_is_durable(
    gateway: Gateway, client: anthropic.AsyncAnthropic, last: list[bytes]
) -> None:
    gateway.log.full = True
    gateway.upstream.pieces = [*REFUND[:3], *last]
    kinds = []
    with pytest.raises(anthropic.APIStatusError, match="the spool is full") as caught:
        async for event in await client.messages.create(**ASKED, stream=True):
            kinds.append(event.type)
    assert caught.value.type == "overloaded_error"
    assert kinds == ["message_start", "content_block_start", "content_block_delta", "content_block_delta"]


async def test_a_stream_that_the_client_closes_is_logged_as_left(
    gateway: Gateway, client: anthropic.AsyncAnthropic
) -> None:
    gateway.upstream.pieces = [*REFUND[:2], asyncio.Event()]
    stream = await client.messages.create(**ASKED, stream=True)
    async for event in stream:
        if event.type == "content_block_delta":
            break
    await stream.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await gateway.upstream.closed.wait()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not gateway.log.events:
            await asyncio.sleep(0.01)
    (answer,) = gateway.log.events[0].answers
    assert (answer.text, answer.finish_reason) == ("ref", "client_left")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_external_api_answers_while_no_replica_does_but_counts_no_tokens(stream: bool) -> None:
    replicas, external = Replicas([NOBODY], UpstreamLimits(), Metrics(), last_resort=False), FakeUpstream()
    async with (
        serving(replicas=replicas, external=external) as gateway,
        listening(gateway) as address,
        _client(address) as client,
    ):
        raw = await client.messages.with_raw_response.create(**ASKED, stream=stream)
        assert raw.headers["x-ratchet-variant"] == "external"
        if stream:
            texts = [event.delta.text async for event in await raw.parse() if event.type == "content_block_delta"]
            assert "".join(texts) == "refund"
        else:
            assert (await raw.parse()).content[0].text == "refund"
        with pytest.raises(anthropic.InternalServerError):
            await client.messages.count_tokens(model="support", messages=MESSAGES)
    assert external.paths == ["/v1/chat/completions"]
    assert gateway.log.events[0].variant == "external"


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[tuple[str, str, Gateway]]:
    """A gateway with one key, for `support` alone and three requests: its address, the key, and itself."""
    key, digest = new_key()
    limits: Any = {"tasks": ("support",), "requests_per_second": 0.01, "burst": 3, "created_at": datetime.now(UTC)}
    write_keys(tmp_path / "keys.json", [ApiKey(app="desk", digest=digest, **limits)])
    access = AccessControl(tmp_path / "keys.json", tmp_path / "had-keys")
    access.reload()
    async with serving(access=access) as gateway, listening(gateway) as address:
        yield address, key, gateway


async def test_x_api_key_and_authorization_are_keys(guarded: tuple[str, str, Gateway]) -> None:
    address, key, gateway = guarded
    async with _client(address, key) as client:
        await client.messages.create(**ASKED)
    url = address.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=url, auth_token=key, max_retries=0) as client:
        await client.messages.create(**ASKED)
    assert [event.app for event in gateway.log.events] == ["desk", "desk"]


async def test_refusals_are_the_clients_own_errors(guarded: tuple[str, str, Gateway]) -> None:
    address, key, _ = guarded
    async with _client(address, "sk-ant-another") as stranger, _client(address, key) as client:
        with pytest.raises(anthropic.AuthenticationError, match="begin with rk_") as unknown:
            await stranger.messages.create(**ASKED)
        assert unknown.value.type == "authentication_error"
        with pytest.raises(anthropic.AuthenticationError, match="begin with rk_"):
            await stranger.messages.count_tokens(model="support", messages=MESSAGES)
        with pytest.raises(anthropic.PermissionDeniedError, match="not for the task 'haiku'"):
            await client.messages.create(**{**ASKED, "model": "haiku"})
        with pytest.raises(anthropic.PermissionDeniedError, match="not for the task 'haiku'"):
            await client.messages.count_tokens(model="haiku", messages=MESSAGES)
        await client.messages.create(**ASKED)
        with pytest.raises(anthropic.RateLimitError, match="requests a second") as limited:
            await client.messages.create(**ASKED)
    assert int(limited.value.response.headers["retry-after"]) > 0


async def test_the_clients_own_headers_are_accepted(gateway: Gateway) -> None:
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "context-1m-2025-08-07", "x-api-key": "any"}
    answer = await gateway.http.post("/v1/messages", json=ASKED, headers=headers)
    assert answer.json()["type"] == "message"
    assert answer.headers["x-ratchet-variant"] == "base"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_client_knows_the_requests_id(client: anthropic.AsyncAnthropic, stream: bool) -> None:
    raw = await client.messages.with_raw_response.create(**ASKED, stream=stream, extra_headers={"x-request-id": "r1"})
    assert raw.headers["request-id"] == "r1"
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.messages.create(**{**ASKED, "model": "x"}, extra_headers={"x-request-id": "r2"})
    assert caught.value.request_id == caught.value.body["request_id"] == "r2"
