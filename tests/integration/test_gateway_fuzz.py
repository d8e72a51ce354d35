"""Whatever is sent to the gateway, it answers what it must, never with a 5xx, and is none the worse for it."""

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

from schemas.tasks import RedactionSettings, TaskKind, TaskSpec
from tests.integration.any_model import any_model
from tests.integration.gateway_clients import Place, ask
from tests.integration.gateway_process import GatewayProcess, OwnBroker
from tests.integration.malformed import Broken, broken, framed, sound

pytestmark = pytest.mark.stack

BODIES = 10_000
AT_ONCE = 16
MIB = 2**20
EXAMPLES = 60
PATIENCE_SECONDS = 20.0


@pytest.fixture(scope="module")
async def place(shared_broker: OwnBroker) -> AsyncIterator[Place]:
    """Two tasks, of both kinds, and a model server of another process that answers all that it is asked."""
    broker_settings = await asyncio.to_thread(shared_broker.start)
    mark = uuid4().hex[:8]
    task = TaskSpec(
        name=f"answers-{mark}", kind=TaskKind.GENERATION, system_prompt="Help.",
        redaction=RedactionSettings(enabled=False),
    )  # fmt: skip
    labels = {"kind": TaskKind.CLASSIFICATION, "labels": ("refund", "top up", "card lost")}
    with any_model() as vllm:
        one = Place(
            shared_broker, broker_settings, vllm, (task, task.model_copy(update={"name": f"labels-{mark}", **labels}))
        )
        await one.announce()
        yield one


@pytest.fixture(scope="module")
async def gateway(place: Place) -> AsyncIterator[GatewayProcess]:
    async with place.gateway() as one:
        yield one


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
async def test_schemathesis_finds_no_server_error(place: Place, gateway: GatewayProcess, mode: GenerationMode) -> None:
    async with gateway.http() as http:
        described = (await http.get("/openapi.json")).json()
        told = await ask(http, place.task)
        _name_tasks(described, [place.task, place.raw], told.headers["x-ratchet-prediction-id"])
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=f"http://127.0.0.1:{gateway.port}")
    tried: Counter[str] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters):
            continue  # Nothing can be wrong with a request that has nothing in it.

        @settings(
            derandomize=True, database=None, deadline=None, max_examples=EXAMPLES, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask_it(case: Any) -> None:
            response = case.call(timeout=PATIENCE_SECONDS)
            case.validate_response(response, checks=[not_a_server_error])
            tried[f"{case.path} {response.status_code}"] += 1

        try:
            await asyncio.to_thread(ask_it)
        except Unsatisfiable:  # A body of any kind is valid here; what must be tried is counted below.
            assert mode is GenerationMode.NEGATIVE, operation.label
    answered = {key.split()[0] for key in tried}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/feedback"} <= answered
    if mode is GenerationMode.POSITIVE:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/predictions"):
            assert tried[f"{path} 200"], tried  # Some requests were valid.


def _name_tasks(described: dict[str, Any], tasks: list[str], prediction_id: str) -> None:
    """Let the names be those of tasks that there are: an invented one is refused before anything else is looked at."""
    names = {"model": {"enum": tasks}, "task": {"enum": tasks}, "prediction_id": {"enum": [prediction_id]}}
    todo: list[Any] = [described]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            properties = one.get("properties")
            if isinstance(properties, dict):
                properties |= {
                    name: value for name, value in names.items() if properties.get(name, {}).get("type") == "string"
                }
            todo += one.values()
        elif isinstance(one, list):
            todo += one


async def test_ten_thousand_malformed_requests_neither_crash_it_nor_stay_in_its_memory(
    place: Place, gateway: GatewayProcess
) -> None:
    async with gateway.http() as http:
        told = await ask(http, place.task)
    assert gateway.process is not None
    process, tasks = psutil.Process(gateway.process.pid), [place.task, place.raw]
    prediction_id = told.headers["x-ratchet-prediction-id"]
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
        assert (await ask(http, place.task)).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
    assert memory[1] - memory[0] < 4 * MIB, [value / MIB for value in memory]


async def _send_all(port: int, requests: list[Broken]) -> Counter[int]:
    """The statuses of the answers; 0 where the connection was closed without one, which bad framing may get."""
    statuses: Counter[int] = Counter()
    waiting = iter(requests)

    async def client() -> None:
        for one in waiting:
            status, answer = await _send(port, one)
            assert status < 500 and (status or not one.framed), (status, one.raw[:3_000], answer[:1_000])
            statuses[status] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(client())
    return statuses


async def _send(port: int, request: Broken) -> tuple[int, bytes]:
    """Status and answer of one request on a connection of its own; status 0 for none."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            answer = b""
            with contextlib.suppress(ConnectionError):
                writer.write(request.raw)
                await writer.drain()
                if not request.framed:
                    writer.write_eof()
                while piece := await reader.read(65_536):
                    answer += piece
        finally:
            writer.close()
    return (int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0), answer
