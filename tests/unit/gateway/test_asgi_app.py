"""The ASGI application, on a real socket where it matters: disconnects, keep-alive, the documentation."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import httpx
import jsonschema_rs
import orjson
import pytest

from tests.unit.gateway.conftest import REFUND
from tests.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

ASKED = {"model": "support", "messages": [{"role": "user", "content": "hello"}]}


async def _until(holds: Any) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.01)


async def _leave_once_asked(gateway: Gateway, address: str, body: dict[str, Any]) -> None:
    """Send a request, and close its connection once the model server has it."""
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        posting = asyncio.create_task(http.post(f"{address}/chat/completions", json=body))
        await _until(lambda: gateway.upstream.asked)
        posting.cancel()
        await asyncio.gather(posting, return_exceptions=True)


async def test_a_disconnect_cancels_the_upstream_request_and_is_observed(gateway: Gateway, address: str) -> None:
    gateway.upstream.waits_for = asyncio.Event()
    await _leave_once_asked(gateway, address, ASKED)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await gateway.upstream.closed.wait()
    await _until(lambda: gateway.log.observed)
    assert [event.status for event in gateway.log.observed] == [499]
    assert gateway.log.predictions == []
    name = 'ratchet_gateway_requests_total{route="/v1/chat/completions",status="499"}'
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await gateway.metric(name) != 1.0:
            await asyncio.sleep(0.01)


async def test_a_disconnect_within_a_stream_logs_the_partial_answer_as_client_left(
    gateway: Gateway, address: str
) -> None:
    gateway.upstream.pieces = [*REFUND[:2], asyncio.Event()]
    asked = {**ASKED, "stream": True}
    async with (
        httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http,
        http.stream("POST", f"{address}/chat/completions", json=asked) as response,
    ):
        seen = b""
        async for piece in response.aiter_raw():
            seen += piece
            if b'"ref"' in seen:
                break
    async with asyncio.timeout(PATIENCE_SECONDS):
        await gateway.upstream.closed.wait()
    await _until(lambda: gateway.log.predictions)
    (event,) = gateway.log.predictions
    assert (event.answer, event.finish_reason, event.confidence.tokens) == ("ref", "client_left", 1)
    assert event.prediction_id == response.headers["x-ratchet-prediction-id"]
    assert [event.status for event in gateway.log.observed] == [499]


async def test_a_disconnect_before_the_first_piece_of_a_stream_is_observed(gateway: Gateway, address: str) -> None:
    gateway.upstream.pieces = [asyncio.Event()]
    await _leave_once_asked(gateway, address, {**ASKED, "stream": True})
    await _until(lambda: gateway.log.observed)
    assert [event.status for event in gateway.log.observed] == [499]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_is_cancelled_while_its_record_waits_is_recorded_once(
    gateway: Gateway, stream: bool
) -> None:
    gateway.log.cancels = True
    request = asyncio.create_task(gateway.ask(stream=stream))
    await asyncio.gather(request, return_exceptions=True)
    assert [event.status for event in gateway.log.observed] == [200]
    assert [event.finish_reason for event in gateway.log.predictions] == ["stop"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_the_gateways_stop_breaks_off_before_its_answer_is_no_choice_of_its_client(
    gateway: Gateway, stream: bool
) -> None:
    gateway.upstream.waits_for = asyncio.Event()
    gateway.upstream.pieces = [asyncio.Event()]
    request = asyncio.create_task(gateway.ask(stream=stream))
    await _until(lambda: gateway.upstream.asked)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert [(event.status, event.gateway_stopped) for event in gateway.log.observed] == [(503, True)]
    assert [event.finish_reason for event in gateway.log.predictions] == ["gateway_stopped"] * stream


async def test_one_connection_serves_answers_streams_errors_and_the_rest(gateway: Gateway, address: str) -> None:
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    async with httpx.AsyncClient(limits=limits, timeout=PATIENCE_SECONDS) as http:
        for _ in range(2):
            assert (await http.post(f"{address}/chat/completions", json=ASKED)).status_code == 200
            streamed = await http.post(f"{address}/chat/completions", json={**ASKED, "stream": True})
            assert streamed.content.endswith(b"data: [DONE]\n\n")
            assert (await http.post(f"{address}/chat/completions", content=b"{")).status_code == 400
            assert (await http.get(f"{address}/models")).status_code == 200
    assert len(gateway.log.predictions) == 4


async def test_a_slow_answer_is_delivered(gateway: Gateway, address: str) -> None:
    gateway.upstream.waits_for = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, gateway.upstream.waits_for.set)
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        assert (await http.post(f"{address}/chat/completions", json=ASKED)).status_code == 200
    assert [event.status for event in gateway.log.observed] == [200]


async def test_a_body_that_comes_in_pieces_is_read_whole(gateway: Gateway) -> None:
    async def pieces() -> Any:
        raw = orjson.dumps(ASKED)
        for at in range(0, len(raw), 10):
            yield raw[at : at + 10]

    assert (await gateway.http.post("/v1/chat/completions", content=pieces())).status_code == 200


async def test_a_disconnect_while_the_body_is_sent_is_not_an_error(gateway: Gateway) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await gateway.app(scope, receive, send)
    assert sent == []


async def test_an_internal_error_is_logged_and_has_openais_format(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.upstream.answer = None
    gateway.upstream.asked = None  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR):
        response = await gateway.ask()
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "AttributeError" in caplog.text
    assert "hello" not in response.text


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
async def test_hot_routes_take_post_only(gateway: Gateway, method: str) -> None:
    response = await gateway.http.request(method, "/v1/responses")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_the_documentation_lists_every_route_and_its_body(gateway: Gateway) -> None:
    assert (await gateway.http.get("/docs")).status_code == 200
    paths = (await gateway.http.get("/openapi.json")).json()["paths"]
    taking = {
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/feedback", "/v1/predictions",
        "/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score",
        "/v1/messages", "/v1/messages/count_tokens",
    }  # fmt: skip
    for path in taking:
        assert paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"/v1/models", "/v1/models/{name}"} <= paths.keys()


async def test_the_documentation_takes_the_prompts_that_completions_take(gateway: Gateway) -> None:
    described = (await gateway.http.get("/openapi.json")).json()["paths"]["/v1/completions"]["post"]["requestBody"]
    valid = jsonschema_rs.validator_for(described["content"]["application/json"]["schema"]).is_valid
    gateway.upstream.answer = {"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}], "model": "small"}
    for asked in (
        {"prompt": "x"}, {"prompt_embeds": "AAAA"}, {"prompt_embeds": ["AAAA"]}, {"prompt": "x", "prompt_embeds": "AA"},
        {"prompt": None, "prompt_embeds": "AAAA"}, {"prompt": "x", "prompt_embeds": None},
        {}, {"prompt": None}, {"prompt_embeds": None}, {"prompt": None, "prompt_embeds": []}, {"prompt_embeds": 1},
        {"prompt": 1, "prompt_embeds": "AAAA"}, {"prompt": "x", "prompt_embeds": []},
    ):  # fmt: skip
        body = {"model": "haiku", **asked}
        answered = (await gateway.http.post("/v1/completions", json=body)).status_code == 200
        assert valid(body) == answered, asked


async def test_hot_routes_are_timed_too(gateway: Gateway) -> None:
    await gateway.ask()
    assert await gateway.metric('ratchet_gateway_seconds_count{route="/v1/chat/completions"}') == 1.0
