"""Invalid requests are refused with a message that names the problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from services.gateway.upstreams.upstream import UpstreamFailed
from tests.unit.gateway.conftest import serving

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

USER = {"role": "user", "content": "hello"}
DEEP = orjson.loads(b"[" * 900 + b"]" * 900)
"""Nested too deeply for `repr` where a request is served."""


@pytest.mark.parametrize(
    ("fields", "status", "expected"),
    [
        ({"model": "nope"}, 404, "Known tasks: haiku, support"),
        ({"model": "x" * 3_000}, 404, "Known tasks"),
        ({"model": None}, 400, "`model` is missing"),
        ({"model": 7}, 400, "`model` must be a string"),
        ({"messages": []}, 400, "at least one message"),
        ({"messages": None}, 400, "at least one message"),
        ({"messages": "hello"}, 400, "at least one message"),
        ({"messages": ["hello"]}, 400, "messages.0"),
        ({"messages": [{"role": "", "content": "x"}]}, 400, "system, user, assistant or tool"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, 400, "system, user, assistant or tool"),
        ({"messages": [{"role": DEEP, "content": "x"}]}, 400, "`messages.0.role` is a list"),
        ({"messages": [{"content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [USER, {"role": "assistant", "content": 7}]}, 400, "messages.1.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, 400, "is no text"),
        ({"messages": [{"role": "user", "content": [{}]}]}, 400, "without a `type`"),
        ({"messages": [{"role": "user", "content": [7]}]}, 400, "neither a text nor an object"),
        ({"messages": [{"role": "assistant", "tool_calls": {"a": 1}}]}, 400, "messages.0.tool_calls"),
        ({"n": 2}, 400, "`n` must be 1: support is a classification"),
        ({"model": "haiku", "n": 0}, 400, "from 1 to 128"),
        ({"model": "haiku", "n": 129}, 400, "from 1 to 128"),
        ({"model": "haiku", "n": True}, 400, "from 1 to 128"),
        ({"model": "haiku", "n": 1.5}, 400, "from 1 to 128"),
        ({"model": "haiku", "n": 2**60}, 400, "from 1 to 128"),
        ({"logprobs": 5}, 400, "`logprobs`"),
        ({"stream": "yes"}, 400, "`stream`"),
        ({"stream_options": True}, 400, "`stream_options`"),
        ({"user": 12}, 400, "`user` must be a string"),
        ({"safety_identifier": ["u"]}, 400, "`safety_identifier` must be a string"),
    ],
)
async def test_an_invalid_chat_request_is_refused_with_the_reason(
    gateway: Gateway, fields: dict[str, Any], status: int, expected: str
) -> None:
    response = await gateway.ask(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (status, "invalid_request_error")
    assert expected in error["message"]
    assert len(error["message"]) < 400
    assert gateway.upstream.asked == []
    assert gateway.log.predictions == []


@pytest.mark.parametrize("path", ["chat/completions", "predictions"])
async def test_while_no_task_is_known_the_client_is_asked_to_retry(path: str) -> None:
    async with serving(specs=()) as gateway:
        body = {"model": "support", "task": "support", "messages": [USER], "answer": "refund"}
        response = await gateway.http.post(f"/v1/{path}", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": NaN}', b"\xff\xfe", b'{"model": "\\ud800"}'])
@pytest.mark.parametrize(
    "path", ["chat/completions", "completions", "responses", "embeddings", "feedback", "predictions"]
)
async def test_malformed_json_is_refused_everywhere(gateway: Gateway, path: str, body: bytes) -> None:
    response = await gateway.http.post(f"/v1/{path}", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "malformed_json"


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "embeddings", "feedback"])
async def test_a_body_that_is_not_an_object_is_refused(gateway: Gateway, path: str) -> None:
    response = await gateway.http.post(f"/v1/{path}", content=b"[1]")
    assert response.status_code == 400


async def test_a_body_over_the_limit_is_refused_with_or_without_a_declared_length(gateway: Gateway) -> None:
    assert (await gateway.ask("x" * 70_000)).status_code == 413

    async def undeclared() -> Any:
        for _ in range(5):
            yield b" " * 20_000

    response = await gateway.http.post("/v1/chat/completions", content=undeclared())
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


async def test_a_wrong_method_is_an_openai_error(gateway: Gateway) -> None:
    response = await gateway.http.get("/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["message"] == "Method Not Allowed"


@pytest.mark.parametrize("depth", [200, 300, 1_000, 30_000])
@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "embeddings"])
async def test_deep_nesting_is_passed_on_or_refused_and_never_an_internal_error(
    gateway: Gateway, path: str, depth: int
) -> None:
    nested = "[" * depth + "]" * depth
    asked = '"messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"'
    gateway.upstream.failure = UpstreamFailed(400, "no such tools", "status_400")
    response = await gateway.http.post(f"/v1/{path}", content=f'{{"model": "haiku", {asked}, "tools": {nested}}}')
    assert response.status_code == 400
    assert response.json()["error"]["message"]


async def test_huge_numbers_are_passed_on_to_the_upstream(gateway: Gateway) -> None:
    raw = b'{"model": "haiku", "messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 40 + b"}"
    assert (await gateway.http.post("/v1/chat/completions", content=raw)).status_code == 200
    assert gateway.upstream.asked[0]["seed"] == 1e40


async def test_an_impossible_content_length_is_refused(gateway: Gateway) -> None:
    response = await gateway.http.post("/v1/chat/completions", content=b"{}", headers={"content-length": "9" * 30})
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("completions", {}, "`prompt`"),
        ("completions", {"prompt": []}, "`prompt`"),
        ("completions", {"prompt": [1, "two"]}, "`prompt`"),
        ("completions", {"prompt": [[]]}, "`prompt`"),
        ("completions", {"prompt": ["x"] * 129}, "129 answers"),
        ("responses", {}, "`input`"),
        ("responses", {"input": []}, "`input`"),
        ("responses", {"input": ["x"]}, "input.0"),
        ("responses", {"input": [{"type": "message", "role": 7, "content": "x"}]}, "input.0.role"),
        ("responses", {"input": [{"type": "function_call_output", "output": 7}]}, "input.0.output"),
        ("responses", {"input": "x", "previous_response_id": "resp_1"}, "send the whole conversation"),
        ("responses", {"input": "x", "background": True}, "stream it"),
        ("responses", {"input": [{"type": "item_reference", "id": "msg_1"}]}, "`input.0` refers to an item"),
        ("responses", {"input": "x", "instructions": 7}, "`instructions`"),
        ("responses", {"input": "x", "stream": 1}, "`stream`"),
    ],
)
async def test_an_invalid_request_of_the_other_apis_is_refused_with_the_reason(
    gateway: Gateway, path: str, fields: dict[str, Any], expected: str
) -> None:
    response = await gateway.http.post(f"/v1/{path}", json={"model": "haiku", **fields})
    assert response.status_code == 400
    assert expected in response.json()["error"]["message"]
    assert gateway.upstream.asked == []
