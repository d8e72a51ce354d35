"""The gateway's answers equal vLLM's to the same requests, field by field."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import openai
import orjson
import pytest
from pydantic import BaseModel

from schemas.predictions import PredictionLogged
from tests.integration.gateway_stack import MESSAGES, gateway
from tests.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.integration.gateway_stack import Gateway

pytestmark = pytest.mark.stack

__all__ = ["gateway"]

DETERMINISTIC = {"temperature": 0.0, "seed": 7, "max_tokens": 8}
TOOL = {
    "type": "function", "function": {
        "name": "find_card", "description": "Find a lost card.", "strict": True,
        "parameters": {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"]},
    },
}  # fmt: skip
USE_TOOL = {
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "find_card"}},
    "max_tokens": 120,
}
_VARYING = {"id", "created", "created_at", "model", "ratchet", "call_id", "item_id"}
"""Fields that differ between answers: ids, times, and the name of the model."""
_ATTEMPTS = 20


async def _ask_both(gateway: Gateway, path: str, fields: dict[str, Any]) -> tuple[httpx.Response, httpx.Response]:
    """Return the answers of the gateway and of vLLM.

    vLLM gets the request once before, since `usage` reports how much of the prompt was cached. Two answers of vLLM
    itself differ now and then: on a busy machine it sends several tokens as one event, and in another batch it rounds
    differently, so that another token wins. So both are asked again until they agree; a gateway at fault never does.
    """
    read = _events if fields.get("stream") else httpx.Response.json
    async with httpx.AsyncClient(base_url=gateway.settings.vllm_urls[0], timeout=PATIENCE_SECONDS) as vllm:
        await vllm.post(path, json={"model": gateway.base_model, **fields})
        for _ in range(_ATTEMPTS):
            ours = await gateway.http.post(path, json={"model": gateway.free, **fields})
            theirs = await vllm.post(path, json={"model": gateway.base_model, **fields})
            if _approximate(read(theirs)) == _without_varying(read(ours)):
                break
    return ours, theirs


def _approximate(value: Any) -> Any:
    """Remove varying fields and compare numbers approximately, since another batch rounds differently."""
    if isinstance(value, dict):
        return {name: _approximate(inner) for name, inner in value.items() if name not in _VARYING}
    if isinstance(value, list):
        return [_approximate(inner) for inner in value]
    return pytest.approx(value, abs=0.05) if isinstance(value, float) else value


def _assert_same(ours: httpx.Response, theirs: httpx.Response) -> Any:
    assert (ours.status_code, ours.headers["content-type"]) == (theirs.status_code, theirs.headers["content-type"])
    assert _approximate(theirs.json()) == _without_varying(ours.json())
    return ours.json()


def _without_varying(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_varying(inner) for name, inner in value.items() if name not in _VARYING}
    return [_without_varying(inner) for inner in value] if isinstance(value, list) else value


def _events(response: httpx.Response) -> list[Any]:
    blocks = [block for block in response.text.split("\n\n") if block]
    data = [line.removeprefix("data: ") for block in blocks for line in block.split("\n") if line.startswith("data: ")]
    return [text if text == "[DONE]" else orjson.loads(text) for text in data]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 3},
        {"n": 2, "temperature": 1.0, "top_k": 1},
        {"stop": [" "]},
        {"response_format": {"type": "json_object"}},
        USE_TOOL,
        {"tools": [TOOL], "tool_choice": "required", "max_tokens": 40},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"tools": [TOOL], "tool_choice": "none"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Say"}, {"type": "text", "text": "hi"}]}]},
        {"messages": [
            *MESSAGES,
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "find_card", "arguments": '{"color": "red"}'}},
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": "It is under the bed."},
        ]},
    ],
)  # fmt: skip
async def test_a_chat_is_answered_as_vllm_answers_it(gateway: Gateway, fields: dict[str, Any]) -> None:
    ours, theirs = await _ask_both(gateway, "/v1/chat/completions", {"messages": MESSAGES, **DETERMINISTIC, **fields})
    body = _assert_same(ours, theirs)
    assert ours.status_code == 200, body
    assert body["model"] == gateway.free
    assert len(await gateway.event(PredictionLogged, body["id"])) == 1


@pytest.mark.parametrize("fields", [{}, {"stream_options": {"include_usage": True}}, {"logprobs": True}, USE_TOOL])
async def test_a_stream_is_vllms_stream_chunk_by_chunk(gateway: Gateway, fields: dict[str, Any]) -> None:
    asked = {"messages": MESSAGES, **DETERMINISTIC, "stream": True, **fields}
    ours, theirs = await _ask_both(gateway, "/v1/chat/completions", asked)
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert [_approximate(event) for event in _events(theirs)] == [_without_varying(event) for event in _events(ours)]


async def test_a_completion_is_answered_as_vllm_answers_it(gateway: Gateway) -> None:
    for fields in ({}, {"logprobs": 2}, {"prompt": ["One, two,", "Red, green,"]}, {"echo": True}):
        ours, theirs = await _ask_both(gateway, "/v1/completions", {"prompt": "One, two,", **DETERMINISTIC, **fields})
        body = _assert_same(ours, theirs)
        assert ours.status_code == 200, body
    ours, theirs = await _ask_both(gateway, "/v1/completions", {"prompt": "One, two,", **DETERMINISTIC, "stream": True})
    assert [_approximate(event) for event in _events(theirs)] == [_without_varying(event) for event in _events(ours)]
    event, logged = await gateway.logged(ours.headers["x-ratchet-prediction-id"])
    assert event.call.messages[0].content == "One, two,"
    assert logged.confidence.score is not None


async def test_a_response_is_vllms_and_is_logged(gateway: Gateway) -> None:
    asked = {"input": "Say hi.", "temperature": 0.0, "max_output_tokens": 16}
    for fields in ({}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"instructions": "Be brief."}):
        ours, theirs = await _ask_both(gateway, "/v1/responses", {**asked, **fields})
        body = _assert_same(ours, theirs)
        assert ours.status_code == 200, body
        _, logged = await gateway.logged(body["id"])
        text = "".join(part["text"] for item in body["output"] for part in item["content"])
        assert logged.text == text
        assert (logged.confidence.score is not None) == bool(text)


async def test_a_streamed_response_is_vllms_and_is_logged(gateway: Gateway) -> None:
    asked = {"input": "Say hi.", "temperature": 0.0, "max_output_tokens": 16, "stream": True}
    ours, theirs = await _ask_both(gateway, "/v1/responses", asked)
    assert [_approximate(event) for event in _events(theirs)] == [_without_varying(event) for event in _events(ours)]
    _, logged = await gateway.logged(ours.headers["x-ratchet-prediction-id"])
    assert _events(ours)[-1]["ratchet"]["confidence"] == logged.confidence.score is not None
    assert logged.text == _events(ours)[-1]["response"]["output"][0]["content"][0]["text"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {"input": "hello"}),
        ("/v1/chat/completions", {"messages": MESSAGES, "temperature": -1}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": -3}),
        ("/v1/chat/completions", {"messages": MESSAGES, "response_format": {"type": "poem"}}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 6_000}]}),
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "sometimes"}),
        ("/v1/completions", {"prompt": "x", "max_tokens": "many"}),
        ("/v1/responses", {"input": "x", "temperature": "hot"}),
    ],
)
async def test_an_error_is_vllms_own(gateway: Gateway, path: str, fields: dict[str, Any]) -> None:
    ours, theirs = await _ask_both(gateway, path, fields)
    assert ours.status_code == theirs.status_code >= 400
    error, own = ours.json()["error"], theirs.json().get("error")
    if own is not None:
        assert error == own
    assert error["message"]


class Card(BaseModel):
    color: str
    lost: bool


async def test_structured_outputs_and_tools_work_through_the_official_client(gateway: Gateway) -> None:
    answer = await gateway.client.chat.completions.parse(
        model=gateway.free, messages=MESSAGES, response_format=Card, temperature=0.0, max_tokens=60
    )
    assert isinstance(answer.choices[0].message.parsed, Card)

    def call_tool() -> Any:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any") as client:
            return client.chat.completions.create(model=gateway.free, messages=MESSAGES, temperature=0.0, **USE_TOOL)  # type: ignore[call-overload]

    # In a thread: the gateway runs in this test's event loop, which the client blocks.
    called = await asyncio.to_thread(call_tool)
    (call,) = called.choices[0].message.tool_calls
    assert call.function.name == "find_card"
    assert orjson.loads(call.function.arguments)["color"] in ("red", "blue")
    _, logged = await gateway.logged(called.id)
    assert [(one.name, one.arguments) for one in logged.tool_calls] == [("find_card", call.function.arguments)]
    stream = await gateway.client.chat.completions.create(
        model=gateway.free, messages=MESSAGES, temperature=0.0, stream=True, **USE_TOOL
    )  # type: ignore[call-overload]
    calls = [call async for chunk in stream for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    assert orjson.loads("".join(one.function.arguments or "" for one in calls))["color"] in ("red", "blue")
