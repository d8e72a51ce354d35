"""The gateway answers valid and malformed requests without a 5xx, a crash or a memory leak."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskKind, TaskSpec
from tests.integration.gateway_clients import GatewayBackends, ask
from tests.integration.gateway_process import GatewayProcess, OwnBroker
from tests.integration.malformed import Broken, broken, framed, sound
from tests.integration.permissive_model import permissive_model
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.stack

BODIES = 4_000
AT_ONCE = 16
MIB = 2**20
EXAMPLES = 25


@pytest.fixture(scope="module")
async def backends(shared_broker: OwnBroker) -> AsyncIterator[GatewayBackends]:
    """Two tasks, of both kinds, and a model server in another process that answers every request."""
    broker_settings = await asyncio.to_thread(shared_broker.start)
    suffix = uuid4().hex[:8]
    task = TaskSpec(
        name=f"answers-{suffix}", kind=TaskKind.GENERATION, system_prompt="Help.",
        redaction=RedactionSettings(enabled=False),
    )  # fmt: skip
    labels = {"kind": TaskKind.CLASSIFICATION, "labels": ("refund", "top up", "card lost")}
    with permissive_model() as vllm:
        backends = GatewayBackends(
            shared_broker, broker_settings, vllm, (task, task.model_copy(update={"name": f"labels-{suffix}", **labels}))
        )
        await backends.publish_tasks()
        yield backends


@pytest.fixture(scope="module")
async def gateway(backends: GatewayBackends) -> AsyncIterator[GatewayProcess]:
    async with backends.gateway() as gateway:
        yield gateway


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
async def test_schemathesis_finds_no_server_error(
    backends: GatewayBackends, gateway: GatewayProcess, mode: GenerationMode
) -> None:
    async with gateway.http() as http:
        document = (await http.get("/openapi.json")).json()
        response = await ask(http, backends.task)
        _name_tasks(document, [backends.task, backends.raw], response.headers["x-ratchet-prediction-id"])
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=f"http://127.0.0.1:{gateway.port}")
    counts: Counter[str] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters):
            continue  # A request without body and path parameters cannot be invalid.

        @settings(
            derandomize=True, database=None, max_examples=EXAMPLES, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            response = case.call(timeout=PATIENCE_SECONDS)
            case.validate_response(response, checks=[not_a_server_error])
            counts[f"{case.path} {response.status_code}"] += 1

        try:
            await asyncio.to_thread(send)
        except Unsatisfiable:  # Every body is valid here.
            assert mode is GenerationMode.NEGATIVE, operation.label
    answered = {key.split()[0] for key in counts}
    messages = {"/v1/messages", "/v1/messages/count_tokens"}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/feedback"} <= answered
    assert messages <= answered
    if mode is GenerationMode.POSITIVE:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", *messages):
            assert counts[f"{path} 200"], counts  # Some requests were valid.
        # By the schema an answer may be a text or tool calls; chance rarely gives either, so here is a valid one.
        told = {
            "task": backends.task,
            "messages": [{"role": "user", "content": "hm?"}],
            "answer": "refund",
            "latency_ms": 9,
        }
        async with gateway.http() as http:
            assert (await http.post("/v1/predictions", json=told)).status_code == 200


def _name_tasks(document: dict[str, Any], tasks: list[str], prediction_id: str) -> None:
    """Restrict names to existing tasks: an unknown task is refused before the rest of the request is read."""
    names = {"model": {"enum": tasks}, "task": {"enum": tasks}, "prediction_id": {"enum": [prediction_id]}}
    todo: list[Any] = [document]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            properties = node.get("properties")
            if isinstance(properties, dict):
                properties |= {
                    name: value for name, value in names.items() if properties.get(name, {}).get("type") == "string"
                }
            todo += node.values()
        elif isinstance(node, list):
            todo += node


async def test_thousands_of_malformed_requests_neither_crash_the_gateway_nor_leak_memory(
    backends: GatewayBackends, gateway: GatewayProcess
) -> None:
    async with gateway.http() as http:
        response = await ask(http, backends.task)
    assert gateway.process is not None
    process, tasks = psutil.Process(gateway.process.pid), [backends.task, backends.raw]
    prediction_id = response.headers["x-ratchet-prediction-id"]
    for path, body in sound(tasks, prediction_id):
        status, answer = await _send(gateway.port, framed(path, httpx.Request("POST", "http://x", json=body).content))
        assert status == 200, (path, body, answer)

    requests = broken(tasks, prediction_id, BODIES)
    memory, statuses = [], Counter[int]()
    for _ in range(2):
        half = [next(requests) for _ in range(BODIES // 2)]
        statuses += await _send_all(gateway.port, half)
        memory.append(process.memory_info().rss)

    assert statuses.total() == BODIES
    assert statuses[200] > BODIES / 50 and statuses[400] > BODIES / 4, statuses
    assert gateway.process.poll() is None
    async with gateway.http() as http:
        assert (await ask(http, backends.task)).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
    assert memory[1] - memory[0] < 4 * MIB, [value / MIB for value in memory]


async def _send_all(port: int, requests: list[Broken]) -> Counter[int]:
    """Return the counts of the statuses; 0: the connection was closed without an answer, as bad framing may cause."""
    statuses: Counter[int] = Counter()
    pending = iter(requests)

    async def client() -> None:
        for request in pending:
            status, answer = await _send(port, request)
            assert status < 500 and (status or not request.framed), (status, request.raw[:3_000], answer[:1_000])
            statuses[status] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(client())
    return statuses


async def _send(port: int, request: Broken) -> tuple[int, bytes]:
    """Send a request on a new connection and return status and answer; status 0: no answer."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            answer = b""
            with contextlib.suppress(ConnectionError):
                writer.write(request.raw)
                await writer.drain()
                if not request.framed:
                    writer.write_eof()
                while data := await reader.read(65_536):
                    answer += data
        finally:
            writer.close()
    return (int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0), answer
