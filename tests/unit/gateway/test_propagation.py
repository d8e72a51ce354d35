"""The ids that travel to the model server and back, and cannot bring a header of their own."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from services.gateway.asgi.propagation import sent_request_id, upstream_lines
from services.gateway.upstreams.upstream import UpstreamFailed
from tests.unit.gateway.conftest import serving
from tests.unit.gateway.real_sockets import listening
from tests.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

CHAT = {"model": "support", "messages": [{"role": "user", "content": "hello"}]}
PARENT = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"


async def test_the_clients_request_id_and_trace_go_to_the_model_server_and_the_id_comes_back(gateway: Gateway) -> None:
    sent = {"x-request-id": "order-7:a/b", "traceparent": PARENT, "tracestate": "vendor=1"}
    for body in (CHAT, {**CHAT, "stream": True}):
        response = await gateway.http.post("/v1/chat/completions", json=body, headers=sent)
        assert response.headers.get_list("x-request-id") == ["order-7:a/b"]
    expected = b"x-request-id: order-7:a/b\r\ntraceparent: %b\r\ntracestate: vendor=1\r\n" % PARENT.encode()
    assert gateway.upstream.lines == [expected] * 2


async def test_without_one_the_id_is_the_events_and_each_request_has_its_own(gateway: Gateway) -> None:
    ids = []
    for stream in (False, True):
        response = await gateway.ask(stream=stream)
        ids.append(response.headers["x-request-id"])
        assert re.fullmatch("[0-9a-f]{32}", ids[-1])
        assert gateway.upstream.lines[-1] == b"x-request-id: %b\r\n" % ids[-1].encode()
    assert [event.request_id for event in gateway.log.predictions] == ids
    assert ids[0] != ids[1]


async def test_two_requests_with_the_same_id_of_the_client_are_two_events(gateway: Gateway) -> None:
    for _ in range(2):
        await gateway.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "same"})
    first, second = gateway.log.predictions
    assert first.request_id != second.request_id
    assert "same" not in (first.request_id, second.request_id)


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/chat/completions", b"{", 400), ("GET", "/v1/chat/completions", b"", 405),
        ("POST", "/v1/messages", b"{", 400), ("POST", "/v1/feedback", b"{", 400), ("GET", "/v1/models", b"", 200),
        ("GET", "/v1/models/none", b"", 404), ("GET", "/nothing", b"", 404), ("GET", "/healthz", b"", 200),
        ("POST", "/v1/chat/completions", b" " * 70_000, 413),
    ],
)  # fmt: skip
async def test_every_answer_has_the_id_errors_too(
    gateway: Gateway, method: str, path: str, content: bytes, status: int
) -> None:
    for sent, expected in (({"x-request-id": "mine"}, "mine"), ({}, "[0-9a-f]{32}")):
        response = await gateway.http.request(method, path, content=content, headers=sent)
        assert response.status_code == status
        (shown,) = response.headers.get_list("x-request-id")
        assert re.fullmatch(expected, shown)
        if path == "/v1/messages":
            assert response.json()["request_id"] == shown


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("chat/completions", CHAT, 200), ("chat/completions", {**CHAT, "stream": True}, 200),
        ("chat/completions", {}, 400), ("messages", {}, 400), ("feedback", {}, 400), ("predictions", {}, 400),
    ],
)  # fmt: skip
async def test_the_trace_comes_back_with_every_answer_errors_too_and_none_without_one(
    gateway: Gateway, path: str, body: Any, status: int
) -> None:
    for sent, expected in (({"traceparent": PARENT}, [PARENT]), ({}, []), ({"traceparent": "nonsense"}, [])):
        response = await gateway.http.post(f"/v1/{path}", json=body, headers=sent)
        assert (response.status_code, response.headers.get_list("traceparent")) == (status, expected)


async def test_an_error_of_the_model_server_has_the_id(gateway: Gateway) -> None:
    gateway.upstream.failure = UpstreamFailed(500, "broke", "error")
    assert (await gateway.ask()).headers["x-request-id"]


@pytest.mark.parametrize(
    "sent",
    [
        b"a\r\nx-evil: 1", b"a\nb", b"a\rb", b"a b", b"", b"\xff", b"a\x00b", b"a" * 129, b"<script>", b"a,b", b"-a",
        b"'", "é".encode(),
    ],
)  # fmt: skip
async def test_an_id_that_is_long_or_has_other_characters_is_replaced_and_never_reflected(
    gateway: Gateway, sent: bytes
) -> None:
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    for path in ("/v1/chat/completions", "/v1/feedback"):
        scope = {
            "type": "http", "method": "POST", "path": path, "headers": [(b"x-request-id", sent)], "query_string": b"",
            "client": ("127.0.0.1", 1), "server": ("g", 80), "scheme": "http", "root_path": "", "http_version": "1.1",
        }  # fmt: skip
        await gateway.app(scope, receive, send)
    for message in messages:
        if message["type"] == "http.response.start":
            (shown,) = [value for name, value in message["headers"] if name == b"x-request-id"]
            assert re.fullmatch(rb"[0-9a-f]{32}", shown)


@pytest.mark.parametrize("trace", [PARENT + "\r\nx: 1", "00-" + "0" * 32 + "-" + "2" * 16 + "-01", "nonsense"])
async def test_a_trace_that_is_not_valid_goes_nowhere(gateway: Gateway, trace: str) -> None:
    await gateway.http.post("/v1/chat/completions", json=CHAT, headers=[(b"traceparent", trace.encode())])
    assert b"traceparent" not in gateway.upstream.lines[0]


def test_lines_of_a_request_end_as_header_lines_do() -> None:
    assert upstream_lines(b"a", ()) == b"x-request-id: a\r\n"
    assert upstream_lines(b"a", (("traceparent", b"p"),)) == b"x-request-id: a\r\ntraceparent: p\r\n"
    assert sent_request_id([(b"x-request-id", b"a"), (b"x-request-id", b"b")]) == b"a"


def test_a_real_client_gets_the_id_on_one_connection_for_answer_stream_and_error() -> None:
    async def scenario() -> None:
        async with (
            serving() as gateway,
            listening(gateway.app) as (port, _),
            httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http,
        ):
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            for number, body in enumerate((CHAT, {**CHAT, "stream": True}, {})):
                response = await http.post(url, json=body, headers={"x-request-id": f"mine-{number}"})
                assert response.headers["x-request-id"] == f"mine-{number}"

    asyncio.run(scenario())
