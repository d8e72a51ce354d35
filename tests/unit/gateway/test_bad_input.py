from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.gateway.conftest import serving

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"model": "nope"}, 404, "Known tasks: haiku, support"),
        ({"model": "x" * 3_000}, 404, "Known tasks"),
        ({"model": None}, 400, "`model` is missing"),
        ({"model": 7}, 400, "`model` must be a string"),
        ({"messages": []}, 400, "at least one message"),
        ({"messages": None}, 400, "at least one message"),
        ({"messages": "hello"}, 400, "at least one message"),
        ({"messages": ["hello"]}, 400, "messages.0"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "system, user, assistant"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, 400, "system, user, assistant"),
        ({"messages": [{"content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, 400, "messages.1.content"),
        ({"messages": [{"role": "user", "content": []}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "'image_url'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "only text"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, 400, "NUL"),
        ({"messages": [USER] * 64}, 400, "at most 64"),
        ({"n": 2}, 400, "`n` must be 1"),
        ({"stream": "yes"}, 400, "`stream`"),
        ({"stream_options": True}, 400, "`stream_options`"),
        ({"user": 12}, 400, "`user` must be a string"),
        ({"user": "u" * 501}, 400, "at most 500"),
    ],
)
async def test_a_bad_request_is_told_what_is_wrong(
    gateway: Gateway, fields: dict[str, Any], status: int, says: str
) -> None:
    response = await gateway.ask(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (status, "invalid_request_error")
    assert says in error["message"]
    assert len(error["message"]) < 400
    assert gateway.upstream.asked == []
    assert gateway.log.events == []


@pytest.mark.parametrize("path", ["chat/completions", "predictions"])
async def test_a_gateway_that_knows_no_task_yet_says_try_again(path: str) -> None:
    async with serving(specs=()) as gateway:
        body = {"model": "support", "task": "support", "messages": [USER], "answer": "refund"}
        response = await gateway.http.post(f"/v1/{path}", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": NaN}', b"\xff\xfe", b'{"model": "\\ud800"}'])
@pytest.mark.parametrize("path", ["chat/completions", "feedback", "predictions"])
async def test_malformed_json_is_refused_everywhere(gateway: Gateway, path: str, body: bytes) -> None:
    response = await gateway.http.post(f"/v1/{path}", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "malformed_json"


@pytest.mark.parametrize("path", ["chat/completions", "feedback"])
async def test_a_body_that_is_no_object_is_refused(gateway: Gateway, path: str) -> None:
    response = await gateway.http.post(f"/v1/{path}", content=b"[1]")
    assert response.status_code == 400


async def test_a_body_over_the_limit_is_refused_declared_or_not(gateway: Gateway) -> None:
    assert (await gateway.ask("x" * 5_000)).status_code == 413

    async def undeclared() -> Any:
        for _ in range(5):
            yield b" " * 1_000

    response = await gateway.http.post("/v1/chat/completions", content=undeclared())
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


async def test_a_wrong_method_is_an_error_in_openais_shape(gateway: Gateway) -> None:
    response = await gateway.http.get("/v1/chat/completions")
    assert response.status_code == 405
    assert response.json()["error"]["message"] == "Method Not Allowed"
