"""OTLP requests: spans made by hand, and recordings of real instrumentations."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from schemas.catalog import topic_of
from schemas.predictions import PredictionLogged, RequestObserved
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.gateway.asgi.admission import RequestAdmission
from services.gateway.asgi.large_work import LargeWork
from services.gateway.auth.grants import UNRESTRICTED, Grant
from services.gateway.domain import Identifiers, PredictionIds
from services.gateway.observability.metrics import Metrics
from services.gateway.recording.external import ExternalPredictions
from services.gateway.settings import BodyLimits
from services.gateway.tasks.served import ServedTasks
from services.gateway.telemetry.ingest import TelemetryIngest
from services.gateway.telemetry.otlp import build_router
from shared.http import build_http
from shared.kafka.latest_by_key import LatestByKey
from shared.spool import Record, SpoolUnavailable

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
NOW = datetime(2026, 11, 26, tzinfo=UTC)
"""The receiver's time: the recordings are of the day before."""
START = int((NOW - timedelta(minutes=10)).timestamp()) * 10**9
PROTOBUF = {"content-type": "application/x-protobuf"}
ASKED = [{"role": "user", "parts": [{"type": "text", "content": "where is my parcel?"}]}]
ANSWERED = [{"role": "assistant", "parts": [{"type": "text", "content": "delivery"}], "finish_reason": "stop"}]
CHAT: dict[str, Any] = {
    "gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o", "gen_ai.response.model": "gpt-4o-2024",
    "gen_ai.response.id": "chatcmpl-abc", "gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 2,
    "gen_ai.response.finish_reasons": ["stop"],
}  # fmt: skip
CHAT_WITH_MESSAGES = {
    **CHAT,
    "gen_ai.input.messages": json.dumps(ASKED),
    "gen_ai.output.messages": json.dumps(ANSWERED),
}
"""A chat with its messages on the span, by the newest conventions."""
RECORDED: dict[str, list[list[str]]] = json.loads((Path(__file__).parent / "recorded" / "otlp.json").read_text())
"""By instrumentation: path and gzipped body of each request for one plain and one streamed chat with openai 3.57."""


def recorded(name: str) -> list[tuple[str, bytes]]:
    return [(path, gzip.decompress(base64.b64decode(body))) for path, body in RECORDED[name]]


def any_value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, Mapping):
        return AnyValue(kvlist_value=KeyValueList(values=attributes(value)))
    return AnyValue(array_value=ArrayValue(values=map(any_value, value))) if value is not None else AnyValue()


def attributes(values: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=name, value=any_value(value)) for name, value in values.items()]


def span(values: Mapping[str, Any], **fields: Any) -> Span:
    defaults = {
        "trace_id": bytes.fromhex(TRACE), "span_id": bytes.fromhex(SPAN), "start_time_unix_nano": START,
        "end_time_unix_nano": START + 250_000_000,
    }  # fmt: skip
    return Span(attributes=attributes(values), **{**defaults, **fields})


def traces(*spans: Span, service: str = "support", **resource: str) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource_group = request.resource_spans.add()
    named = {name.replace("__", "."): value for name, value in resource.items()}
    resource_group.resource.attributes.extend(attributes({"service.name": service, **named}))
    resource_group.scope_spans.add().spans.extend(spans)
    return request


def as_json(request: Any) -> dict[str, Any]:
    """OTLP's JSON: protobuf's, but ids in hex and enums as numbers."""
    data: dict[str, Any] = MessageToDict(request, use_integers_for_enums=True)

    def with_hex(value: Any) -> Any:
        if isinstance(value, list):
            return [with_hex(item) for item in value]
        if isinstance(value, dict):
            return {
                name: base64.b64decode(item).hex() if name in ("traceId", "spanId") else with_hex(item)
                for name, item in value.items()
            }
        return value

    converted: dict[str, Any] = with_hex(data)
    return converted


@dataclass
class RecordedEvents:
    records: list[Record] = field(default_factory=list)
    full: bool = False

    async def append(self, records: Sequence[Record], media: object = None) -> None:
        if self.full:
            raise SpoolUnavailable("the spool is full", "make room")
        self.records += records

    @property
    def predictions(self) -> list[PredictionLogged]:
        topic = topic_of(PredictionLogged).name
        return [PredictionLogged.model_validate_json(record.value) for record in self.records if record.topic == topic]

    @property
    def answers(self) -> list[str]:
        """The answers, each as one text."""
        return [answer.plain for prediction in self.predictions for answer in prediction.answers]

    @property
    def observed(self) -> list[RequestObserved]:
        topic = topic_of(RequestObserved).name
        return [RequestObserved.model_validate_json(record.value) for record in self.records if record.topic == topic]


@dataclass
class Keyring:
    """Grants every request, unless `refusal` is set."""

    allowed: Grant = UNRESTRICTED
    refusal: Exception | None = None

    def grant(self, headers: Any) -> Grant:
        if self.refusal is not None:
            raise self.refusal
        return self.allowed

    def charge(self, grant: Grant, size: int) -> None:
        """Its keys have no limits."""


@dataclass
class Receiver:
    """The gateway's OTLP route alone."""

    http: httpx.AsyncClient
    log: RecordedEvents
    ids: PredictionIds
    metrics: Metrics
    keys: Keyring

    async def send(self, request: Any, **headers: str) -> httpx.Response:
        return await self.http.post("/v1/traces", content=request.SerializeToString(), headers={**PROTOBUF, **headers})

    async def accepted(self, request: Any) -> Any:
        """Send a request; return its partial success."""
        response = await self.send(request)
        assert response.status_code == 200, response.text
        response_message = ExportTraceServiceResponse()
        response_message.ParseFromString(response.content)
        return response_message.partial_success

    def counted(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("ratchet_gateway_spans_total", {"outcome": outcome}) or 0.0


SPECS = (
    TaskSpec(name="support", kind=TaskKind.CLASSIFICATION, system_prompt="Name it.", labels=("delivery", "refund")),
    TaskSpec(name="haiku", kind=TaskKind.GENERATION, system_prompt=""),
)


@asynccontextmanager
async def receiver(specs: Sequence[TaskSpec] = SPECS) -> AsyncIterator[Receiver]:
    """An OTLP route that takes 50 spans a request, 64 KiB a body, 256 KiB unpacked."""
    tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    for spec in specs:
        await tasks.put(spec.name, TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec))
    metrics, log, ids, keys = Metrics(), RecordedEvents(), PredictionIds(b"k" * 32), Keyring()
    served = ServedTasks(tasks, metrics)
    names = {"legacy-app": "haiku", "own-model": "haiku", "support-desk": "support"}
    app = build_http("test", list, 64 * 1024)
    external = ExternalPredictions(Identifiers(ids, b"s" * 32), now=lambda: NOW)
    ingest = TelemetryIngest(served, log, external, metrics, names, LargeWork())
    admission = RequestAdmission(keys, BodyLimits(telemetry=64 * 1024))  # type: ignore[arg-type]
    app.include_router(build_router(ingest, admission))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        yield Receiver(http, log, ids, metrics, keys)
