"""The caller's trace is propagated to the events of its request; a span per request only where tracing is on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from services.gateway.observability.tracing import TracingMiddleware, event_headers, with_spans
from services.gateway.upstreams.upstream import UpstreamFailed
from shared.settings import Settings
from shared.spool import Record
from tests.unit.gateway.conftest import serving

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CALLER}-01"


def test_events_carry_the_callers_trace() -> None:
    headers = [(b"host", b"x"), (b"tracestate", b"a=1"), (b"traceparent", PARENT.encode()), (b"tracestate", b"b=2")]
    assert event_headers(headers) == (("traceparent", PARENT.encode()), ("tracestate", b"a=1,b=2"))
    assert event_headers([]) == event_headers([(b"tracestate", b"a=1")]) == ()


def test_two_traceparents_are_ignored() -> None:
    assert event_headers([(b"traceparent", PARENT.encode())] * 2) == ()


def test_a_malformed_traceparent_is_ignored() -> None:
    for value in (b"", b"00-x-y-01", b"\xff" * 55, PARENT.encode() * 9):
        assert event_headers([(b"traceparent", value), (b"tracestate", b"a=1")]) == ()


async def test_every_record_of_a_request_carries_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[Record] = []
    async with serving() as gateway:

        async def append(appended: Sequence[Record], media: object = None) -> None:
            records.extend(appended)

        monkeypatch.setattr(gateway.log, "append", append)
        gateway.http.headers["traceparent"] = PARENT
        assert (await gateway.ask()).status_code == 200
        gateway.upstream.failure = UpstreamFailed(500, "broken", "error")
        assert (await gateway.ask()).status_code == 500
        given = {"prediction_id": gateway.ids.new("support"), "kind": "thumbs", "positive": True}
        assert (await gateway.http.post("/v1/feedback", json=given)).status_code == 200
        made = {"task": "haiku", "messages": [{"role": "user", "content": "x"}], "answer": "y", "latency_ms": 1}
        assert (await gateway.http.post("/v1/predictions", json=made)).status_code == 200
    assert {record.topic.split(".")[0] for record in records} == {"predictions", "requests", "feedback"}
    assert {record.headers for record in records} == {(("traceparent", PARENT.encode()),)}


async def _never(scope: object, receive: object, send: object) -> None:
    raise AssertionError


def test_without_tracing_the_application_is_unchanged(tmp_path: Path) -> None:
    assert with_spans(_never, Settings(home=tmp_path), "gateway") is _never
    traced = with_spans(_never, Settings(home=tmp_path, otlp_endpoint="http://127.0.0.1:9"), "gateway")
    assert isinstance(traced, TracingMiddleware)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def client(spans: InMemorySpanExporter) -> Iterator[httpx.AsyncClient]:
    app = FastAPI()

    @app.post("/v1/answer")
    async def answer(request: Request) -> JSONResponse:
        """Returns the trace headers of its events."""
        headers = {"x-ratchet-prediction-id": "p1", "x-ratchet-variant": "canary", "x-other": "not an attribute"}
        return JSONResponse([value.decode() for _, value in event_headers(request.scope["headers"])], headers=headers)

    @app.get("/v1/models/{name}")
    async def model(name: str) -> None:
        raise RuntimeError("a bug")

    @app.get("/healthz")
    async def healthz() -> None: ...

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    transport = httpx.ASGITransport(TracingMiddleware(app, provider.get_tracer("test")), raise_app_exceptions=False)
    yield httpx.AsyncClient(transport=transport, base_url="http://gateway")
    provider.shutdown()


async def test_events_carry_the_requests_span_a_child_of_the_callers(
    client: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    response = await client.post("/v1/answer", headers={"traceparent": PARENT, "tracestate": "a=1"})
    (span,) = spans.get_finished_spans()
    assert response.json() == [f"00-{TRACE}-{span.context.span_id:016x}-01", "a=1"]
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, CALLER)
    assert (span.name, span.kind, span.status.status_code) == ("POST /v1/answer", SpanKind.SERVER, StatusCode.UNSET)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST", "url.path": "/v1/answer", "http.response.status_code": 200,
        "ratchet.prediction_id": "p1", "ratchet.variant": "canary",
    }  # fmt: skip


async def test_without_a_valid_traceparent_a_new_trace_starts(
    client: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    response = await client.post("/v1/answer", headers={"traceparent": "00-nonsense-01", "tracestate": "a=1"})
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    (carried,) = response.json()
    assert carried.rsplit("-", 1)[0] == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"


async def test_an_unsampled_trace_is_propagated_without_a_span(
    client: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    response = await client.post("/v1/answer", headers={"traceparent": PARENT[:-1] + "0"})
    assert spans.get_finished_spans() == ()
    assert response.json()[0].startswith(f"00-{TRACE}-") and response.json()[0].endswith("-00")


async def test_a_failed_request_is_an_error_span_and_an_invented_path_names_none(
    client: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    await client.get("/v1/models/one")
    await client.get("/wp-admin/123")
    await client.get("/healthz")
    failed, lost = spans.get_finished_spans()
    assert (failed.name, failed.status.status_code) == ("GET /v1/models/{name}", StatusCode.ERROR)
    assert (lost.name, lost.status.status_code) == ("GET", StatusCode.UNSET)
