"""The OTLP/HTTP protocol, as its specification defines it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gateway.auth.grants import AccessControl
from services.gateway.main import build
from services.gateway.settings import GatewaySettings
from services.gateway.telemetry.spans import MalformedTelemetry, read_spans
from shared.errors import ConfigurationError
from shared.http import HttpError
from tests.unit.gateway.otlp_senders import (
    CHAT_WITH_MESSAGES,
    PROTOBUF,
    Receiver,
    as_json,
    receiver,
    recorded,
    span,
    traces,
)

JSON = {"content-type": "application/json"}


@pytest.fixture
async def gateway() -> AsyncIterator[Receiver]:
    async with receiver() as receiving:
        yield receiving


async def _post(gateway: Receiver, body: Any, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await gateway.http.post("/v1/traces", content=content, headers={**JSON, **headers})


def test_json_and_protobuf_are_decoded_alike() -> None:
    request = traces(span({**CHAT_WITH_MESSAGES, "mixed": [1, -2, 2.5, True, None, {"a": ["b"]}]}, status={"code": 2}))
    plain = list(read_spans(request.SerializeToString(), as_json=False, wanted=bool))
    assert plain == list(read_spans(json.dumps(as_json(request)).encode(), as_json=True, wanted=bool))
    assert plain[0].failed


async def test_json_is_answered_in_json(gateway: Receiver) -> None:
    response = await _post(
        gateway, as_json(traces(span(CHAT_WITH_MESSAGES))), **{"content-type": "application/json; charset=utf-8"}
    )
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == {}
    assert len(gateway.log.predictions) == 1
    response = await _post(gateway, as_json(traces(span(CHAT_WITH_MESSAGES), service="nowhere")))
    assert response.json()["partialSuccess"]["rejectedSpans"] == "1"
    assert "'nowhere'" in response.json()["partialSuccess"]["errorMessage"]


async def test_protobuf_is_answered_in_protobuf(gateway: Receiver) -> None:
    response = await gateway.send(traces(span(CHAT_WITH_MESSAGES)))
    assert (response.headers["content-type"], response.content) == ("application/x-protobuf", b"")


@pytest.mark.parametrize("body", [b"", traces().SerializeToString()])
async def test_a_request_without_spans_is_accepted(gateway: Receiver, body: bytes) -> None:
    response = await _post(gateway, body, **PROTOBUF)
    assert (response.status_code, response.content) == (200, b"")


async def test_gzip_is_decompressed(gateway: Receiver) -> None:
    body = gzip.compress(traces(span(CHAT_WITH_MESSAGES)).SerializeToString())
    assert (await _post(gateway, body, **PROTOBUF, **{"content-encoding": "gzip"})).status_code == 200
    assert len(gateway.log.predictions) == 1


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"no gzip", "gzip"), (gzip.compress(b"x" * 9_000, mtime=0)[:-20], "gzip"), (zlib.compress(b"x"), "deflate")],
)
async def test_an_invalid_or_unsupported_encoding_is_refused(gateway: Receiver, body: bytes, encoding: str) -> None:
    response = await _post(gateway, body, **PROTOBUF, **{"content-encoding": encoding})
    assert response.status_code == (415 if encoding == "deflate" else 400)
    assert "gzip" in Status.FromString(response.content).message


async def test_a_body_that_unpacks_to_more_than_the_limit_is_refused(gateway: Receiver) -> None:
    body = gzip.compress(b"\x00" * 50 * 1024**2, mtime=0)
    response = await _post(gateway, body, **PROTOBUF, **{"content-encoding": "gzip"})
    assert (response.status_code, len(body) < 64 * 1024) == (413, True)
    assert "262144 bytes when unpacked" in Status.FromString(response.content).message


async def test_a_body_over_the_limit_is_refused(gateway: Receiver) -> None:
    assert (await _post(gateway, b" " * (64 * 1024 + 1))).status_code == 413


async def test_more_spans_than_the_limit_are_refused_before_any_is_logged(
    gateway: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.telemetry.ingest.MAX_SPANS", 50)
    many = [span({**CHAT_WITH_MESSAGES, "gen_ai.input.messages": "x"}, span_id=f"{n:8}".encode()) for n in range(51)]
    response = await gateway.send(traces(*many))
    assert response.status_code == 400
    assert "more than 50" in Status.FromString(response.content).message
    assert gateway.log.records == []
    assert (await gateway.accepted(traces(*many[:50]))).rejected_spans == 0
    assert len(gateway.log.predictions) == 50


@pytest.mark.parametrize("media_type", ["text/plain", "", "application/x-www-form-urlencoded"])
async def test_another_content_type_is_refused(gateway: Receiver, media_type: str) -> None:
    response = await _post(gateway, b"{}", **{"content-type": media_type})
    assert response.status_code == 415
    assert "application/json" in Status.FromString(response.content).message


async def test_broken_protobuf_is_a_400_with_a_status(gateway: Receiver) -> None:
    response = await _post(gateway, b"\xff\xff\xff", **PROTOBUF)
    assert (response.status_code, response.headers["content-type"]) == (400, "application/x-protobuf")
    status = Status.FromString(response.content)
    assert status.code == 3
    assert "ExportTraceServiceRequest" in status.message


def _with(change: dict[str, Any]) -> dict[str, Any]:
    body = as_json(traces(span(CHAT_WITH_MESSAGES)))
    body["resourceSpans"][0]["scopeSpans"][0]["spans"][0] |= change
    return body


_DEEP: dict[str, Any] = {"stringValue": "x"}
for _ in range(60):
    _DEEP = {"arrayValue": {"values": [_DEEP]}}
_DEEP_LIST = orjson.loads(b"[" * 900 + b"]" * 900)
CHAT_OPERATION = {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}}


@pytest.mark.parametrize(
    "body",
    [
        b"{", [], {"resourceSpans": 1}, {"resourceSpans": [1]}, {"resourceSpans": [{"scopeSpans": {}}]},
        _with({"traceId": "xyz"}), _with({"spanId": None}),
        _with({"traceId": "0" * 32}), _with({"startTimeUnixNano": "soon"}), _with({"endTimeUnixNano": "9" * 30}),
        _with({"events": [{"attributes": 1}]}), _with({"attributes": [CHAT_OPERATION, 1]}),
        _with({"attributes": [CHAT_OPERATION, {"key": "deep", "value": _DEEP}]}),
        _with({"attributes": [CHAT_OPERATION, {"key": "n", "value": {"intValue": "1.5"}}]}),
        _with({"attributes": [{"key": _DEEP_LIST}]}), _with({"events": [{"name": _DEEP_LIST}]}),
        _with({"startTimeUnixNano": _DEEP_LIST}),
    ],
)  # fmt: skip
async def test_broken_json_is_a_400_with_a_status(gateway: Receiver, body: Any) -> None:
    response = await _post(gateway, body)
    assert response.status_code == 400
    assert response.json()["code"] == 3
    assert response.json()["message"]
    assert gateway.log.records == []


async def test_a_full_log_asks_the_client_to_retry(gateway: Receiver) -> None:
    gateway.log.full = True
    response = await gateway.send(traces(span(CHAT_WITH_MESSAGES)))
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert Status.FromString(response.content).code == 14


async def test_while_no_task_is_known_the_client_is_asked_to_retry() -> None:
    async with receiver(specs=()) as gateway:
        response = await gateway.send(traces(span(CHAT_WITH_MESSAGES)))
    assert response.status_code == 503
    assert "no task is known yet" in Status.FromString(response.content).message


async def test_without_a_valid_key_the_body_is_not_decoded(gateway: Receiver) -> None:
    gateway.keys.refusal = HttpError(401, "no API key", "missing_api_key", headers={"www-authenticate": "Bearer"})
    response = await _post(gateway, b"no json")
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert response.json() == {"code": 16, "message": "no API key"}


async def test_spans_have_a_body_limit_of_their_own(tmp_path: Path) -> None:
    settings = GatewaySettings(home=tmp_path, gateway_max_body_bytes=1_024)
    limit = settings.body_limits.telemetry
    service = build(settings)
    assert service.http is not None
    await next(start for start in service.prepare if start.__qualname__ == AccessControl.start.__qualname__)()
    transport = httpx.ASGITransport(app=service.http.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        for path, size, refused in (
            ("/v1/traces", limit, False), ("/v1/traces", limit + 1, True), ("/v1/feedback", 2_000, True),
        ):  # fmt: skip
            response = await http.post(path, content=b" " * size, headers=JSON)
            assert (response.status_code == 413) is refused, (path, size)


def test_the_task_names_of_services_come_from_the_settings() -> None:
    settings = GatewaySettings(gateway_traces_tasks="shop=support, gpt-4o = haiku ,")
    assert settings.traces_tasks == {"shop": "support", "gpt-4o": "haiku"}
    for invalid in ("shop", "shop=a=b", "=support", "shop="):
        with pytest.raises(ConfigurationError, match="RATCHET_GATEWAY_TRACES_TASKS"):
            _ = GatewaySettings(gateway_traces_tasks=invalid).traces_tasks


SEEDS = [body for _, body in recorded("openai-v2 2.4b0, messages on spans")]


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=5), st.data())
def test_damaged_protobuf_is_decoded_or_malformed(
    seed: bytes, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    body = bytearray(seed[: data.draw(st.integers(0, len(seed)))])
    for position, value in changes:
        if body:
            body[position % len(body)] = value
    try:
        list(read_spans(bytes(body), as_json=False, wanted=bool))
    except MalformedTelemetry as error:
        assert str(error)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([
        "resourceSpans", "resource", "scopeSpans", "spans", "attributes", "key", "value", "stringValue", "intValue",
        "arrayValue", "kvlistValue", "values", "traceId", "events", "status", "code"]), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=80)
@given(JSON_VALUES)
def test_any_json_is_decoded_or_malformed(value: Any) -> None:
    try:
        list(read_spans(json.dumps(value).encode(), as_json=True, wanted=lambda names: True))
    except MalformedTelemetry as error:
        assert str(error)
