"""Calls to other providers are in the lake, from instrumented applications and from the `ratchet` package."""

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
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskKind, TaskSpec
from services.prediction_log.main import build
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.tables import open_table
from shared.service import running
from tests.conftest import ROOT
from tests.integration.gateway_clients import GatewayBackends
from tests.integration.gateway_process import GatewayProcess, OwnBroker, model_server
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack

APPLICATION = """
import os
from openai import OpenAI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

spans = TracerProvider()
spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
OpenAIInstrumentor().instrument(tracer_provider=spans)

client = OpenAI(max_retries=0)
asked = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Where is my parcel?"}]
answer = client.chat.completions.create(model=os.environ.get("MODEL", "gpt-4o"), messages=asked)
print(answer.choices[0].message.content)
try:
    OpenAI(base_url=os.environ["OPENAI_BASE_URL"] + "/nowhere").chat.completions.create(model="gpt-4o", messages=asked)
except Exception as error:
    print(type(error).__name__)
spans.shutdown()
"""
"""An application as in OpenTelemetry's documentation; nothing in it is specific to Ratchet."""


@pytest.fixture(scope="module")
async def backends(shared_broker: OwnBroker) -> AsyncIterator[GatewayBackends]:
    settings = await asyncio.to_thread(shared_broker.start)
    plain = RedactionSettings(enabled=False)
    spec = TaskSpec(name=f"traces-{uuid4().hex[:8]}", kind=TaskKind.GENERATION, system_prompt="Help.", redaction=plain)
    async with model_server(lambda: f"Lost: {uuid4().hex}.") as url:
        backends = GatewayBackends(shared_broker, settings, url, (spec, spec))
        await backends.publish_tasks()
        yield backends


@pytest.fixture(scope="module")
async def gateway(backends: GatewayBackends) -> AsyncIterator[GatewayProcess]:
    async with backends.gateway() as gateway:
        yield gateway


@pytest.fixture(scope="module")
async def lake(backends: GatewayBackends, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of a lake that prediction_log fills."""
    uri = str(tmp_path_factory.mktemp("lake"))
    settings = PredictionLogSettings.load(home=backends.broker.home, lake=uri)
    async with running([build(settings)]):
        yield uri


async def _rows(lake: str, table: str, **values: Any) -> list[dict[str, Any]]:
    """Wait until the table has rows with these values, and return them."""
    found: list[dict[str, Any]] = []

    def has_rows() -> bool:
        delta = open_table(lake, table)
        rows = delta.to_pyarrow_table().to_pylist() if delta else []
        found[:] = [row for row in rows if row.items() >= values.items()]
        return bool(found)

    await until(has_rows, lambda: f"{values} is not in {table}")
    return found


async def _run(gateway: GatewayProcess, backends: GatewayBackends, code: str = APPLICATION, **more: str) -> str:
    """Run the application and return what it printed."""
    env = {
        **os.environ, "OPENAI_BASE_URL": f"{backends.vllm}/v1", "OPENAI_API_KEY": "sk-none",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{gateway.port}/v1/traces", "OTEL_SERVICE_NAME": "shop",
        "OTEL_RESOURCE_ATTRIBUTES": f"ratchet.task={backends.task}", **more,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=env, cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE_SECONDS):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert b"Failed to export" not in errors, errors.decode()
    return output.decode().strip()


@pytest.mark.parametrize("mode", ["span_only", "span_and_event"])
async def test_an_instrumented_applications_calls_are_in_the_lake_without_code_of_ratchet(
    backends: GatewayBackends, gateway: GatewayProcess, lake: str, mode: str
) -> None:
    output = await _run(gateway, backends, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=mode)
    answer, failure = output.splitlines()
    assert (answer[:6], failure) == ("Lost: ", "NotFoundError")
    (row,) = await _rows(lake, PREDICTIONS, answer=answer)
    assert json.loads(row["messages"]) == [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "Where is my parcel?"},
    ]  # fmt: skip
    assert (row["task"], row["variant"], row["model"]) == (backends.task, "external", "gpt-4o")
    assert (row["prompt_tokens"], row["answer_tokens"], row["finish_reason"]) == (5, 1, "stop")
    assert 0 < row["latency_ms"] < 60_000
    (observed,) = await _rows(lake, REQUESTS, prediction_id=row["prediction_id"])
    assert observed["status"] == 200
    assert await _rows(lake, REQUESTS, task=backends.task, status=404)


async def test_an_application_that_calls_the_gateway_and_is_instrumented_is_logged_once(
    backends: GatewayBackends, gateway: GatewayProcess, lake: str
) -> None:
    gateway_url = f"http://127.0.0.1:{gateway.port}/v1"
    output = await _run(gateway, backends, OPENAI_BASE_URL=gateway_url, MODEL=backends.task,
                      OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="span_only")  # fmt: skip
    rows = await _rows(lake, PREDICTIONS, answer=output.splitlines()[0])
    async with gateway.http() as http:
        assert 'ratchet_gateway_spans_total{outcome="known"} 1.0' in (await http.get("/metrics")).text
    assert [row["variant"] for row in rows] == ["base"]


async def test_what_the_ratchet_package_logs_is_in_the_lake_with_its_feedback(
    backends: GatewayBackends, gateway: GatewayProcess, lake: str
) -> None:
    client = ratchet.Client(f"http://127.0.0.1:{gateway.port}")
    answer = f"Lost: {uuid4().hex}"
    messages = [{"role": "user", "content": "Where is my parcel?"}]
    name = client.log(backends.task, messages, answer, latency_ms=12.5, model="claude", user="ann")
    client.feedback(name, "edited", text="It is on its way.")
    assert await asyncio.to_thread(client.flush, PATIENCE_SECONDS)
    client.close()
    assert client.dropped == 0
    (row,) = await _rows(lake, PREDICTIONS, answer=answer)
    assert (row["model"], row["variant"], row["latency_ms"]) == ("claude", "external", 12.5)
    (feedback,) = await _rows(lake, FEEDBACK, prediction_id=row["prediction_id"])
    assert (feedback["kind"], feedback["text"]) == ("edited", "It is on its way.")


async def test_feedback_by_the_providers_id_finds_the_span_of_the_answer(
    backends: GatewayBackends, gateway: GatewayProcess, lake: str
) -> None:
    """The application uses `ratchet.Spans` beside the exporter. The model server gives every answer the id `c`."""
    code = APPLICATION.replace("OpenAIInstrumentor()", f"""import ratchet
names = ratchet.Spans("{backends.task}")
spans.add_span_processor(names)
OpenAIInstrumentor()""").replace("spans.shutdown()", f"""spans.shutdown()
feedback = ratchet.Client("http://127.0.0.1:{gateway.port}")
feedback.feedback(names.prediction_id(answer.id), "thumbs", positive=True)
""")  # fmt: skip
    output = await _run(gateway, backends, code, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="span_only")
    (row,) = await _rows(lake, PREDICTIONS, answer=output.splitlines()[0])
    (feedback,) = await _rows(lake, FEEDBACK, prediction_id=row["prediction_id"])
    assert (feedback["kind"], feedback["positive"]) == ("thumbs", True)
