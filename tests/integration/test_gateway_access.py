"""Keys that change and traces that go on, through a real gateway process and a real broker."""

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
from schemas.tasks import RedactionSettings, TaskKind, TaskSpec
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from shared.kafka.broker import build_broker
from shared.kafka.clients import client_options
from shared.kafka.consumers import Consumers
from shared.settings import Settings
from shared.tracing import tracer_provider
from tests.integration.gateway_clients import PREDICTIONS, Place
from tests.integration.gateway_process import OwnBroker, model_server, until

pytestmark = pytest.mark.stack

OBSERVATIONS = "requests.observed.v1"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"}


@pytest.fixture(scope="module")
async def place(shared_broker: OwnBroker) -> AsyncIterator[Place]:
    settings = await asyncio.to_thread(shared_broker.start)
    plain = RedactionSettings(enabled=False)
    spec = TaskSpec(name=f"access-{uuid4().hex[:8]}", kind=TaskKind.GENERATION, system_prompt="Help.", redaction=plain)
    async with model_server(lambda: "Hello.") as vllm:
        one = Place(shared_broker, settings, vllm, (spec, spec))
        await one.announce()
        yield one


async def ask(http: httpx.AsyncClient, task: str, **headers: str) -> httpx.Response:
    body = {"model": task, "messages": [{"role": "user", "content": "hello"}]}
    return await http.post("/v1/chat/completions", json=body, headers=headers)


async def answered(http: httpx.AsyncClient, task: str, **headers: str) -> str:
    """The id of an answer."""
    response = await ask(http, task, **headers)
    assert response.status_code == 200, response.text
    return response.headers["x-ratchet-prediction-id"]


async def traces(settings: Settings, topic: str, ids: Sequence[str]) -> list[dict[str, str]]:
    """What the records of these keys carry, in the order of `ids`, once all are there."""
    consumer = AIOKafkaConsumer(
        topic, **client_options(settings), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        found: dict[str, ConsumerRecord] = {}
        async with asyncio.timeout(60):
            while not found.keys() >= set(ids):
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    found |= {record.key.decode(): record for record in batch}
    finally:
        await consumer.stop()
    for one in ids:
        assert ("content-type", b"application/json") in found[one].headers
    return [{name: value.decode() for name, value in found[one].headers if name in SENT} for one in ids]


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, dict[str, list[Span]]]]:
    """The address of an OTLP collector, and the spans that it got, by service."""
    got: dict[str, list[Span]] = {}

    async def take(request: web.Request) -> web.Response:
        for resource in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
            names = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                got.setdefault(names["service.name"], []).extend(scope.spans)
        return web.Response()

    app = web.Application()
    app.add_routes([web.post("/v1/traces", take)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", got
    finally:
        await runner.cleanup()


def in_trace(got: dict[str, list[Span]], service: str) -> list[Span]:
    """The spans of a service in the caller's trace: it makes others of what it reads at its start."""
    return [one for one in got.get(f"ratchet-{service}", []) if one.trace_id.hex() == TRACE]


async def test_the_callers_trace_is_on_the_records_that_its_request_leaves(place: Place) -> None:
    async with place.gateway() as gateway, gateway.http() as http:
        with_trace = await answered(http, place.task, **SENT)
        without = await answered(http, place.task)
        malformed = await answered(http, place.task, traceparent="00-nonsense-01", tracestate="vendor=1")
        given = {"prediction_id": with_trace, "kind": "thumbs", "positive": True}
        assert (await http.post("/v1/feedback", json=given, headers=SENT)).status_code == 200
        ids = [with_trace, without, malformed]
        for topic in (PREDICTIONS, OBSERVATIONS):
            assert await traces(place.settings, topic, ids) == [SENT, {}, {}]
        assert await traces(place.settings, "feedback.given.v1", [with_trace]) == [SENT]


async def test_spans_of_the_gateway_and_of_a_consumer_are_in_the_callers_trace(place: Place) -> None:
    async with collector() as (address, got):
        async with place.gateway(RATCHET_OTLP_ENDPOINT=address, OTEL_BSP_SCHEDULE_DELAY="100") as gateway:
            async with gateway.http() as http:
                prediction_id = await answered(http, place.task, **SENT)
            await until(lambda: in_trace(got, "gateway"))
            (carried,) = await traces(place.settings, OBSERVATIONS, [prediction_id])
        (span,) = in_trace(got, "gateway")
        assert (span.name, span.parent_span_id.hex()) == ("POST /v1/chat/completions", CALLER)
        assert carried["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"

        settings = place.settings.model_copy(update={"otlp_endpoint": address})
        seen: list[str] = []

        async def handle(event: RequestObserved) -> None:
            seen.append(event.prediction_id)

        broker = build_broker(settings, "deployer")
        Consumers(broker, "deployer", settings).on(RequestObserved, handle)
        await broker.start()
        try:
            await until(lambda: prediction_id in seen)
        finally:
            await broker.stop()
        provider = tracer_provider(settings, "deployer")
        assert provider is not None
        await asyncio.to_thread(provider.force_flush)
        # The test before this one left a record of the same trace.
        (consumed,) = (one for one in in_trace(got, "deployer") if one.parent_span_id == span.span_id)
        assert consumed.name == f"{OBSERVATIONS} process"


async def test_keys_are_given_and_taken_while_the_gateway_runs_and_never_written_to_its_log(place: Place) -> None:
    async with place.gateway() as gateway, gateway.http() as http:

        async def comes_to(status: int, **headers: str) -> None:
            async def came() -> bool:
                return (await ask(http, place.task, **headers)).status_code == status

            await until(came, 15)

        assert "no API keys" in " ".join((await http.get("/readyz")).json()["notes"])
        (first, one), (second, two) = new_key(), new_key()
        old, new = (ApiKey(app="shop", digest=digest, created_at=datetime.now(UTC)) for digest in (one, two))
        file = gateway.settings.keys_file
        write_keys(file, [old])
        await comes_to(401)
        await answered(http, place.task, authorization=f"Bearer {first}")
        write_keys(file, [old, new])
        await comes_to(200, authorization=f"Bearer {second}")
        await answered(http, place.task, authorization=f"Bearer {first}")
        write_keys(file, [new])
        await comes_to(401, authorization=f"Bearer {first}")
        file.write_text("{")

        async def told() -> bool:
            return "last hold" in " ".join((await http.get("/readyz")).json()["notes"])

        await until(told, 15)
        await answered(http, place.task, **{"api-key": second})
        log = (gateway.home / "gateway.log").read_text()
        assert first not in log and second not in log
