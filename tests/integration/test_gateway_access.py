"""API keys that change at run time, and traces across services, with a real gateway process and a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import pytest
from aiohttp import web
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from schemas.predictions import RequestObserved
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskKind, TaskSpec
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from shared.kafka.broker import build_broker
from shared.kafka.clients import client_options
from shared.kafka.consumers import Consumers
from shared.settings import Settings
from shared.tracing import tracer_provider
from tests.integration.gateway_clients import PREDICTIONS, GatewayBackends
from tests.integration.gateway_process import OwnBroker, model_server
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack

OBSERVATIONS = "requests.observed.v1"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"}


@pytest.fixture(scope="module")
async def backends(shared_broker: OwnBroker) -> AsyncIterator[GatewayBackends]:
    settings = await asyncio.to_thread(shared_broker.start)
    plain = RedactionSettings(enabled=False)
    spec = TaskSpec(name=f"access-{uuid4().hex[:8]}", kind=TaskKind.GENERATION, system_prompt="Help.", redaction=plain)
    async with model_server(lambda: "Hello.") as vllm:
        backends = GatewayBackends(shared_broker, settings, vllm, (spec, spec))
        await backends.publish_tasks()
        yield backends


async def ask(http: httpx.AsyncClient, task: str, **headers: str) -> httpx.Response:
    body = {"model": task, "messages": [{"role": "user", "content": "hello"}]}
    return await http.post("/v1/chat/completions", json=body, headers=headers)


async def ask_successfully(http: httpx.AsyncClient, task: str, **headers: str) -> str:
    """Send a request that must succeed and return its prediction id."""
    response = await ask(http, task, **headers)
    assert response.status_code == 200, response.text
    return response.headers["x-ratchet-prediction-id"]


async def trace_headers(settings: Settings, topic: str, ids: Sequence[str]) -> list[dict[str, str]]:
    """Wait for the records of these predictions and return their trace headers, in the order of `ids`."""
    consumer = AIOKafkaConsumer(
        topic, **client_options(settings), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        found: dict[str, ConsumerRecord] = {}
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not found.keys() >= set(ids):
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    found |= {name: record for name in ids for record in batch if name.encode() in record.value}
    finally:
        await consumer.stop()
    for prediction_id in ids:
        assert ("content-type", b"application/json") in found[prediction_id].headers
    return [{name: value.decode() for name, value in found[key].headers if name in SENT} for key in ids]


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, dict[str, list[Span]]]]:
    """Run an OTLP collector. Yields its address, and the spans that it received, by service."""
    received: dict[str, list[Span]] = {}

    async def receive(request: web.Request) -> web.Response:
        for resource in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
            names = {item.key: item.value.string_value for item in resource.resource.attributes}
            for scope in resource.scope_spans:
                received.setdefault(names["service.name"], []).extend(scope.spans)
        return web.Response()

    app = web.Application()
    app.add_routes([web.post("/v1/traces", receive)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", received
    finally:
        await runner.cleanup()


def in_trace(received: dict[str, list[Span]], service: str) -> list[Span]:
    """Return the spans of a service in the caller's trace; it has others, of records that it reads at its start."""
    return [span for span in received.get(f"ratchet-{service}", []) if span.trace_id.hex() == TRACE]


async def test_the_callers_trace_is_in_the_headers_of_its_requests_records(backends: GatewayBackends) -> None:
    async with backends.gateway() as gateway, gateway.http() as http:
        with_trace = await ask_successfully(http, backends.task, **SENT)
        without = await ask_successfully(http, backends.task)
        malformed = await ask_successfully(http, backends.task, traceparent="00-nonsense-01", tracestate="vendor=1")
        given = {"prediction_id": with_trace, "kind": "thumbs", "positive": True}
        assert (await http.post("/v1/feedback", json=given, headers=SENT)).status_code == 200
        ids = [with_trace, without, malformed]
        for topic in (PREDICTIONS, OBSERVATIONS):
            assert await trace_headers(backends.settings, topic, ids) == [SENT, {}, {}]
        assert await trace_headers(backends.settings, "feedback.given.v1", [with_trace]) == [SENT]


async def test_spans_of_the_gateway_and_of_a_consumer_are_in_the_callers_trace(backends: GatewayBackends) -> None:
    async with collector() as (address, received):
        async with backends.gateway(RATCHET_OTLP_ENDPOINT=address, OTEL_BSP_SCHEDULE_DELAY="100") as gateway:
            async with gateway.http() as http:
                prediction_id = await ask_successfully(http, backends.task, **SENT)
            await until(lambda: in_trace(received, "gateway"))
            (headers,) = await trace_headers(backends.settings, OBSERVATIONS, [prediction_id])
        (span,) = in_trace(received, "gateway")
        assert (span.name, span.parent_span_id.hex()) == ("POST /v1/chat/completions", CALLER)
        assert headers["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"

        settings = backends.settings.model_copy(update={"otlp_endpoint": address})
        handled: list[str] = []

        async def handle(event: RequestObserved) -> None:
            handled.append(event.prediction_id)

        broker = build_broker(settings, "deployer")
        Consumers(broker, "deployer", settings).on(RequestObserved, handle)
        await broker.start()
        try:
            await until(lambda: prediction_id in handled)
        finally:
            await broker.stop()
        provider = tracer_provider(settings, "deployer")
        assert provider is not None
        await asyncio.to_thread(provider.force_flush)
        # The previous test left a record of the same trace.
        (consumed,) = (found for found in in_trace(received, "deployer") if found.parent_span_id == span.span_id)
        assert consumed.name == f"{OBSERVATIONS} process"


async def test_keys_are_added_and_revoked_at_run_time_and_never_logged(
    backends: GatewayBackends,
) -> None:
    async with backends.gateway() as gateway, gateway.http() as http:

        async def wait_for_status(status: int, **headers: str) -> None:
            async def has_status() -> bool:
                return (await ask(http, backends.task, **headers)).status_code == status

            await until(has_status)

        assert "no API keys" in " ".join((await http.get("/readyz")).json()["notes"])
        (first, first_digest), (second, second_digest) = new_key(), new_key()
        digests = (first_digest, second_digest)
        old, new = (ApiKey(app="shop", digest=digest, created_at=datetime.now(UTC)) for digest in digests)
        file = gateway.settings.keys_file
        write_keys(file, [old])
        await wait_for_status(401)
        await ask_successfully(http, backends.task, authorization=f"Bearer {first}")
        write_keys(file, [old, new])
        await wait_for_status(200, authorization=f"Bearer {second}")
        await ask_successfully(http, backends.task, authorization=f"Bearer {first}")
        write_keys(file, [new])
        await wait_for_status(401, authorization=f"Bearer {first}")
        file.write_text("{")

        async def is_reported() -> bool:
            return "stay valid" in " ".join((await http.get("/readyz")).json()["notes"])

        await until(is_reported)
        await ask_successfully(http, backends.task, **{"api-key": second})
        log = (gateway.home / "gateway.log").read_text()
        assert first not in log and second not in log
