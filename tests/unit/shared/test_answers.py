"""A model server's answer, by whichever API, has the contract's form; what the model wrote is never refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from schemas.conversation import Answer, FinishReason, JsonObject, ToolCall
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.model.answers import parse_answer
from shared.model.inference import InferenceClient

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def chat(finish_reason: str | None = "stop", **message: Any) -> dict[str, Any]:
    other = {"index": 1, "message": {"content": "another"}, "finish_reason": "stop"}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}, other]}


def response(*items: dict[str, Any], status: str = "completed", **more: Any) -> dict[str, Any]:
    return {"status": status, "output": list(items), **more}


MESSAGE = {
    "type": "message",
    "content": [{"type": "output_text", "text": "It is "}, {"type": "output_text", "text": "on."}],
}
REFUSED = {"type": "message", "content": [{"type": "refusal", "refusal": "I cannot."}]}
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Look it up."}]}
SUMMARY = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Looked."}]}
FUNCTION = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "find", "arguments": '{"n": 1}'}
PATCH = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "apply_patch", "input": "*** Begin"}
PATCHED = ToolCall(name="apply_patch", arguments="*** Begin", id="call_2", type="custom")
FIND = ToolCall(name="find", arguments='{"n": 1}', id="call_1")


@pytest.mark.parametrize(
    ("path", "body", "answer", "finish_reason"),
    [
        (CHAT, chat(content="refund"), Answer(text="refund"), "stop"),
        (CHAT, chat("length", content=None, reasoning="hm"), Answer(reasoning="hm"), "length"),
        (CHAT, chat(content=None, refusal="I cannot."), Answer(refusal="I cannot."), "stop"),
        (CHAT, chat("abort", content="re"), Answer(text="re"), "other"),
        (CHAT, chat(None, content="re"), Answer(text="re"), "other"),
        (COMPLETIONS, {"choices": [{"text": " refund", "finish_reason": "length"}]}, Answer(text=" refund"), "length"),
        (RESPONSES, response(THOUGHT, MESSAGE), Answer(text="It is on.", reasoning="Look it up."), "stop"),
        (RESPONSES, response(SUMMARY, FUNCTION), Answer(tool_calls=(FIND,), reasoning="Looked."), "tool_calls"),
        (RESPONSES, response(PATCH), Answer(tool_calls=(PATCHED,)), "tool_calls"),
        (RESPONSES, response(REFUSED), Answer(refusal="I cannot."), "stop"),
        (
            RESPONSES,
            response(MESSAGE, status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            Answer(text="It is on."),
            "length",
        ),
    ],
)
def test_an_answer_has_its_text_calls_refusal_reasoning_and_finish_reason(
    path: str, body: Any, answer: Answer, finish_reason: str
) -> None:
    expected = answer.model_copy(update={"finish_reason": FinishReason(finish_reason)})
    assert parse_answer(path, body) == expected


def test_tool_calls_of_a_chat_completion_are_read_with_their_ids_whatever_the_model_wrote() -> None:
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"n": 1}'}},
        {"id": "call_2", "type": "custom", "custom": {"name": "shell", "input": "ls"}},
        {"id": None, "type": "function", "function": {"name": "x" * 300, "arguments": "{broken"}},
        {"type": "function", "function": {"name": "", "arguments": None}},
    ]
    answer = parse_answer(CHAT, chat("tool_calls", content=None, tool_calls=calls))
    assert answer.tool_calls == (
        FIND,
        ToolCall(name="shell", arguments="ls", id="call_2", type="custom"),
        ToolCall(name="x" * 256, arguments="{broken"),
        ToolCall(name="?"),
    )
    assert answer.finish_reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
@pytest.mark.parametrize("body", [None, {}, [], {"choices": []}, {"choices": [None]}, {"output": [{}]}])
def test_what_is_no_answer_is_refused(path: str, body: Any) -> None:
    with pytest.raises(ValueError, match="not an answer of"):
        parse_answer(path, body)


URL = "http://engine"


class Server:
    def __init__(self, status: int = 200, body: Any = None) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.client = InferenceClient([URL])
        self.client._client = httpx.AsyncClient(transport=httpx.MockTransport(self.handle))
        self._status, self._body = status, body

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append((request.url.path, json.loads(request.content)))
        return httpx.Response(self._status, json=self._body)


async def test_a_request_is_sent_as_it_is_with_the_model_alone_added() -> None:
    server = Server(body={"choices": [{"text": "refund", "finish_reason": "stop"}]})
    body = {"prompt": "Classify.", "temperature": 0.3}
    assert (await server.client.answer("a1", COMPLETIONS, body, URL)).text == "refund"
    assert server.requests == [(COMPLETIONS, {**body, "model": "a1"})]
    assert "model" not in body


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [(400, {}, InvalidMessage), (503, {}, DependencyUnavailable), (200, {"choices": []}, DependencyUnavailable)],
)
async def test_a_request_that_gets_no_answer_raises(status: int, body: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await Server(status, body).client.answer("a1", CHAT, {}, URL)


async def test_a_completion_has_the_tools_in_its_request_and_the_tool_calls_in_its_text() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"n": 1}'}}
    server = Server(body=chat("tool_calls", content="One moment.", tool_calls=[call]))
    tools: list[JsonObject] = [{"type": "function", "function": {"name": "find"}}]
    messages = [{"role": "user", "content": "Where is it?"}]
    completion = await server.client.complete("a1", messages, tools=tools)
    assert completion.text == 'One moment.\n[{"name":"find","arguments":"{\\"n\\": 1}"}]'
    ((path, body),) = server.requests
    assert (path, body["tools"], body["messages"]) == (CHAT, tools, messages)


async def test_an_answer_that_a_proxy_has_cut_is_an_engine_that_does_not_answer() -> None:
    """It ended the whole evaluation that asked."""
    client = InferenceClient([URL])
    cut = httpx.Response(200, content=b'{"choices": [', headers={"content-type": "application/json"})
    client._client = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: cut))
    with pytest.raises(DependencyUnavailable):
        await client.complete("a1", [])


async def test_a_proxys_page_in_place_of_a_list_of_models_is_an_engine_that_does_not_answer() -> None:
    """It ended the whole evaluation that asked, while the engine behind it started."""
    client = InferenceClient([URL])
    for page in (httpx.Response(200, html="<p>Starting</p>"), httpx.Response(200, json={"detail": "starting"})):
        client._client = httpx.AsyncClient(transport=httpx.MockTransport(lambda request, page=page: page))
        with pytest.raises(DependencyUnavailable, match="does not list its models"):
            await client.models(URL)


async def test_a_completion_that_is_none_is_an_engine_that_does_not_answer() -> None:
    with pytest.raises(DependencyUnavailable):
        await Server(body={"choices": []}).client.complete("a1", [])


@pytest.mark.parametrize(
    ("listed", "tokens"),
    [
        ([{"id": "base", "max_model_len": 2048}, {"id": "adapter"}], 2048),
        ([{"id": "adapter"}, {"id": "base", "max_model_len": 512}], 512),
        ([{"id": "base"}], None),
        ([], None),
    ],
)
async def test_an_engine_says_how_long_its_context_is_or_does_not(listed: list[JsonObject], tokens: int | None) -> None:
    client = InferenceClient([URL])
    client._client = httpx.AsyncClient(
        transport=httpx.MockTransport(lambda request: httpx.Response(200, json={"data": listed}))
    )
    assert await client.context_tokens() == tokens
