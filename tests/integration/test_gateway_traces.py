"""Applications that ask other providers appear in the lake: instrumented ones, and those with the `ratchet` package."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

import ratchet
from schemas.lake import FEEDBACK, PREDICTIONS, REQUESTS
from schemas.tasks import RedactionSettings, TaskKind, TaskSpec
from services.prediction_log.main import build
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.tables import open_table
from shared.service import running
from tests.conftest import ROOT
from tests.integration.gateway_clients import Place
from tests.integration.gateway_process import GatewayProcess, OwnBroker, model_server, until

pytestmark = pytest.mark.stack

APPLICATION = """
import os
from openai import OpenAI
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

spans, logs = TracerProvider(), LoggerProvider()
spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
OpenAIInstrumentor().instrument(tracer_provider=spans, logger_provider=logs)

client = OpenAI(max_retries=0)
asked = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Where is my parcel?"}]
answer = client.chat.completions.create(model=os.environ.get("MODEL", "gpt-4o"), messages=asked)
print(answer.choices[0].message.content)
try:
    OpenAI(base_url=os.environ["OPENAI_BASE_URL"] + "/nowhere").chat.completions.create(model="gpt-4o", messages=asked)
except Exception as error:
    print(type(error).__name__)
spans.shutdown()
logs.shutdown()
"""
"""An application as OpenTelemetry's documentation has it; no line of it is about us."""


@pytest.fixture(scope="module")
async def place(shared_broker: OwnBroker) -> AsyncIterator[Place]:
    settings = await asyncio.to_thread(shared_broker.start)
    plain = RedactionSettings(enabled=False)
    spec = TaskSpec(name=f"traces-{uuid4().hex[:8]}", kind=TaskKind.GENERATION, system_prompt="Help.", redaction=plain)
    async with model_server(lambda: f"Lost: {uuid4().hex}.") as url:
        one = Place(shared_broker, settings, url, (spec, spec))
        await one.announce()
        yield one


@pytest.fixture(scope="module")
async def gateway(place: Place) -> AsyncIterator[GatewayProcess]:
    async with place.gateway() as one:
        yield one


@pytest.fixture(scope="module")
async def lake(place: Place, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Its address; prediction_log fills it."""
    uri = str(tmp_path_factory.mktemp("lake"))
    settings = PredictionLogSettings.load(home=place.broker.home, lake=uri, prediction_log_wait_ms=100)
    async with running([build(settings)]):
        yield uri


async def _rows(lake: str, table: str, **wanted: Any) -> list[dict[str, Any]]:
    """The rows with these values, once there are any."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        delta = open_table(lake, table)
        rows = delta.to_pyarrow_table().to_pylist() if delta else []
        found[:] = [row for row in rows if row.items() >= wanted.items()]
        return bool(found)

    await until(there, 60.0, lambda: f"{wanted} is not in {table}")
    return found


async def _run(gateway: GatewayProcess, place: Place, code: str = APPLICATION, **more: str) -> str:
    """Run the application; returns what it printed."""
    env = {
        **os.environ, "OPENAI_BASE_URL": f"{place.vllm}/v1", "OPENAI_API_KEY": "sk-none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{gateway.port}", "OTEL_SERVICE_NAME": "shop",
        "OTEL_RESOURCE_ATTRIBUTES": f"ratchet.task={place.task}", **more,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=env, cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    told, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    assert b"Failed to export" not in errors, errors.decode()
    return told.decode().strip()


@pytest.mark.parametrize("mode", ["span_only", "event_only", "span_and_event"])
async def test_an_instrumented_application_is_in_the_lake_without_code_of_ours(
    place: Place, gateway: GatewayProcess, lake: str, mode: str
) -> None:
    told = await _run(gateway, place, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=mode)
    answer, failure = told.splitlines()
    assert (answer[:6], failure) == ("Lost: ", "NotFoundError")
    (row,) = await _rows(lake, PREDICTIONS, answer=answer)
    assert json.loads(row["messages"]) == [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "Where is my parcel?"},
    ]  # fmt: skip
    assert (row["task"], row["variant"], row["model"]) == (place.task, "external", "gpt-4o")
    assert (row["prompt_tokens"], row["answer_tokens"], row["finish_reason"]) == (5, 1, "stop")
    assert 0 < row["latency_ms"] < 60_000
    (seen,) = await _rows(lake, REQUESTS, prediction_id=row["prediction_id"])
    assert seen["status"] == 200
    assert await _rows(lake, REQUESTS, task=place.task, status=404)


async def test_an_application_that_calls_the_gateway_and_is_instrumented_is_logged_once(
    place: Place, gateway: GatewayProcess, lake: str
) -> None:
    through = f"http://127.0.0.1:{gateway.port}/v1"
    told = await _run(gateway, place, OPENAI_BASE_URL=through, MODEL=place.task,
                      OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="span_only")  # fmt: skip
    rows = await _rows(lake, PREDICTIONS, answer=told.splitlines()[0])
    async with gateway.http() as http:
        assert 'ratchet_gateway_spans_total{outcome="known"} 1.0' in (await http.get("/metrics")).text
    assert [row["variant"] for row in rows] == ["base"]


async def test_what_the_ratchet_package_logs_is_in_the_lake_with_its_feedback(
    place: Place, gateway: GatewayProcess, lake: str
) -> None:
    client = ratchet.Client(f"http://127.0.0.1:{gateway.port}")
    answer = f"Lost: {uuid4().hex}"
    asked = [{"role": "user", "content": "Where is my parcel?"}]
    name = client.log(place.task, asked, answer, latency_ms=12.5, model="claude", user="ann")
    client.feedback(name, "edited", text="It is on its way.")
    assert await asyncio.to_thread(client.flush, 20.0)
    client.close()
    assert client.dropped == 0
    (row,) = await _rows(lake, PREDICTIONS, answer=answer)
    assert (row["model"], row["variant"], row["latency_ms"]) == ("claude", "external", 12.5)
    (given,) = await _rows(lake, FEEDBACK, prediction_id=row["prediction_id"])
    assert (given["kind"], given["text"]) == ("edited", "It is on its way.")


async def test_feedback_by_the_providers_id_finds_the_span_of_the_answer(
    place: Place, gateway: GatewayProcess, lake: str
) -> None:
    """`ratchet.Spans` beside the exporter; the model server of these tests calls every answer `c`."""
    code = APPLICATION.replace("OpenAIInstrumentor()", f"""import ratchet
names = ratchet.Spans("{place.task}")
spans.add_span_processor(names)
OpenAIInstrumentor()""").replace("spans.shutdown()", f"""spans.shutdown()
feedback = ratchet.Client("http://127.0.0.1:{gateway.port}")
feedback.feedback(names.prediction_id(answer.id), "thumbs", positive=True)
""")  # fmt: skip
    told = await _run(gateway, place, code, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="span_only")
    (row,) = await _rows(lake, PREDICTIONS, answer=told.splitlines()[0])
    (given,) = await _rows(lake, FEEDBACK, prediction_id=row["prediction_id"])
    assert (given["kind"], given["positive"]) == ("thumbs", True)
