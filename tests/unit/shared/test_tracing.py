"""A trace context is passed on unchanged or not at all; spans are made only where tracing is on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from faststream.kafka import KafkaMessage, TestKafkaBroker
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError

from schemas import catalog
from schemas.predictions import FeedbackGiven
from shared import tracing
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.kafka.broker import Broker, build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.publisher import DeadLetterPublisher
from shared.settings import Settings
from shared.tracing import trace_headers, trace_headers_of, tracer_provider
from tests.waiting import PATIENCE_SECONDS

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
TOPIC = "feedback.given.v1"
EVENT = FeedbackGiven(task="support", task_revision="r1", prediction_id="p1", kind="thumbs", positive=True)


@pytest.mark.parametrize("parent", [PARENT, PARENT[:-1] + "0", "cc" + PARENT[2:], "cc" + PARENT[2:] + "-what-comes"])
def test_a_traceparent_is_passed_on_unchanged(parent: str) -> None:
    assert trace_headers(parent.encode()) == (("traceparent", parent.encode()),)


@pytest.mark.parametrize(
    "parent",
    [
        b"", b"x", PARENT[:-1].encode(), PARENT.upper().encode(), PARENT.encode() + b"-more", PARENT.encode() + b"\n",
        b"ff" + PARENT[2:].encode(), PARENT.replace(TRACE, "0" * 32).encode(), b"\xff" * 55, "é".encode() * 30,
        PARENT.replace("00f067aa0ba902b7", "0" * 16).encode(), b"cc" + PARENT[2:].encode() + b"-" + b"x" * 10_000,
    ],
)  # fmt: skip
def test_an_invalid_traceparent_is_ignored_and_its_tracestate_too(parent: bytes) -> None:
    assert trace_headers(parent, b"vendor=1") == ()


def test_a_tracestate_is_passed_on_if_it_is_valid() -> None:
    assert trace_headers(PARENT.encode(), b"vendor=1,b=2")[1] == ("tracestate", b"vendor=1,b=2")
    for state in (None, b"", b"a=\xff", b"a=1\r\nx-evil: 1", b"a" * 513):
        assert trace_headers(PARENT.encode(), state) == (("traceparent", PARENT.encode()),)


def test_a_records_headers_may_be_any_bytes() -> None:
    assert trace_headers_of([("traceparent", None), ("x", b"\xff")]) == ()
    assert trace_headers_of(()) == ()
    assert trace_headers_of([("x", None), ("traceparent", PARENT.encode())]) == (("traceparent", PARENT.encode()),)


def test_while_tracing_is_off_not_even_the_library_is_imported() -> None:
    code = (
        "import sys, services.gateway.observability.tracing, shared.kafka.broker as t;"
        "from shared.settings import Settings;"
        "t.build_broker(Settings(), 'x');"
        "assert not any(name.startswith('opentelemetry.sdk') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=PATIENCE_SECONDS)
    assert tracer_provider(Settings(), "x") is None


def test_an_endpoint_that_is_not_an_address_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError, match="otlp_endpoint"):
        Settings(otlp_endpoint="collector:4318")


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError) as refused:
        tracer_provider(Settings(otlp_endpoint="http://127.0.0.1:1"), "without")
    assert "tracing" in refused.value.way_out


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Switch tracing on; the spans stay in memory."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_provider", lambda endpoint, service: provider)
    yield exporter
    provider.shutdown()


def on(home: Path) -> tuple[Broker, Consumers]:
    settings = Settings(home=home, otlp_endpoint="http://collector:4318")
    broker = build_broker(settings, "prediction_log")
    return broker, Consumers(broker, "prediction_log", settings)


def traces(exporter: InMemorySpanExporter, name: str) -> set[str]:
    return {f"{span.context.trace_id:032x}" for span in exporter.get_finished_spans() if span.name == f"{TOPIC} {name}"}


async def test_a_consumers_span_continues_the_records_trace(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    broker, consumers = on(tmp_path)
    seen: list[FeedbackGiven] = []

    async def handler(event: FeedbackGiven) -> None:
        seen.append(event)

    consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(broker):
        headers = {"traceparent": PARENT, "content-type": "application/json"}
        await broker.publish(EVENT.model_dump_json().encode(), TOPIC, key=b"p1", headers=headers)
    assert seen == [EVENT]
    # FastStream's publisher makes its own trace here: the consumer must take it from the record.
    assert traces(spans, "process") == traces(spans, "publish") != set()


async def test_a_batch_is_one_span_with_a_link_to_each_trace_in_it(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    broker, consumers = on(tmp_path)
    seen: list[Delivery[FeedbackGiven]] = []

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        seen.extend(deliveries)

    consumers.on_batch(FeedbackGiven, handler)
    async with TestKafkaBroker(broker):
        await broker.publish(EVENT.model_dump_json().encode(), TOPIC, key=b"p1")
    assert seen[0].event == EVENT
    created = [span for span in spans.get_finished_spans() if span.links]
    assert {f"{link.context.trace_id:032x}" for span in created for link in span.links} == traces(spans, "publish")


async def test_a_handler_that_fails_is_redelivered_as_without_tracing(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    broker, consumers = on(tmp_path)

    async def handler(event: FeedbackGiven) -> None:
        raise DependencyUnavailable("the database is away")

    consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(broker):
        with pytest.raises(DependencyUnavailable):
            await broker.publish(EVENT.model_dump_json().encode(), TOPIC, key=b"p1")


async def test_a_dead_letter_has_the_trace_of_its_record(tmp_path: Path) -> None:
    broker = build_broker(Settings(home=tmp_path), "prediction_log")
    consumers = Consumers(broker, "prediction_log", Settings(home=tmp_path))
    dead_letters: list[list[tuple[str, bytes]]] = []

    async def handler(event: FeedbackGiven) -> None: ...

    @broker.subscriber(catalog.dead_letter_topic("prediction_log"), group_id="test", decoder=_undecoded)
    async def on_dead_letter(body: Any, message: KafkaMessage) -> None:
        dead_letters.append(list(message.raw_message.headers))

    consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(broker):
        await broker.publish(b"{", TOPIC, key=b"p1", headers={"traceparent": PARENT, "tracestate": "v=1"})
        await DeadLetterPublisher(broker, "prediction_log", Settings(home=tmp_path)).publish(
            TOPIC, b"p1", b"x", ValueError(), (("traceparent", PARENT.encode()), ("other", b"\xff"))
        )
    traced = [
        (("traceparent", PARENT.encode()) in headers, ("tracestate", b"v=1") in headers) for headers in dead_letters
    ]
    assert traced == [(True, True), (True, False)]


async def _undecoded(message: KafkaMessage) -> Any:
    return message.body


async def test_spans_are_sent_as_otlp_over_http(tmp_path: Path) -> None:
    received: list[ExportTraceServiceRequest] = []

    async def take(request: web.Request) -> web.Response:
        received.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response()

    app = web.Application()
    app.add_routes([web.post("/v1/traces", take)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        provider = tracer_provider(Settings(home=tmp_path, otlp_endpoint=address), "gateway")
        assert provider is not None
        assert tracer_provider(Settings(home=tmp_path, otlp_endpoint=address), "gateway") is provider
        provider.get_tracer("t").start_span("POST /v1/chat/completions").end()
        await asyncio.to_thread(provider.force_flush)
    finally:
        await runner.cleanup()
    (resource,) = received[0].resource_spans
    attributes = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert attributes["service.name"] == "ratchet-gateway"
    assert resource.scope_spans[0].spans[0].name == "POST /v1/chat/completions"
