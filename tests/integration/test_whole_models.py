"""A whole model in the artifact store is served by name, by the stack's server of models and through the gateway, and
goes through the evaluator's gates."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from deploy.devstack import stack
from deploy.devstack.config import StackConfig
from deploy.devstack.supervision import records
from schemas.adapters import PROBES, AdapterEvaluated
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskKind, TaskSpec
from services.evaluator.settings import EvaluatorSettings
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import publish_golden_set
from tests.conftest import TestStack
from tests.integration.gateway_process import GatewayProcess, publish_task
from tests.integration.test_evaluator import (
    BASE,
    adapter_trained,
    evaluated,
    golden_rows,
    publish_dataset,
    task_spec,
)
from tests.integration.test_gateway_passing import with_key
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack
CHAT = "/v1/chat/completions"
QUESTION = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}


@pytest.fixture(scope="module")
async def models(vllm: str, test_stack: TestStack | None, stack_settings: Settings) -> Settings:
    """Settings of a stack that serves whole models."""
    if test_stack is None:
        return stack_settings
    return await asyncio.to_thread(test_stack.start, ["models"])


@pytest.fixture(scope="module")
def whole_model(models: Settings, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a published model: the base model, as a training of all its weights would publish it."""
    folder, name = tmp_path_factory.mktemp("whole") / "model", f"whole-{uuid4().hex[:12]}"
    shutil.copytree(models.models_folder / BASE, folder)
    (folder / "manifest.json").write_text("{}")
    ArtifactStore(models.artifacts_uri, models.home / "cache").publish(folder, "models", name)
    return name


@pytest.fixture
async def gateway(models: Settings, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    """A gateway with nothing but the stack's own settings."""
    spec = TaskSpec(
        name=f"other-{uuid4().hex[:8]}", kind=TaskKind.GENERATION, system_prompt="Help.", cron="0 0 29 2 *",
        redaction=RedactionSettings(enabled=False),
    )  # fmt: skip
    await publish_task(models, spec)
    home = tmp_path / "gateway"
    home.mkdir()
    shutil.copy(models.home / "stack.env", home)
    gateway = GatewayProcess(home, {})
    gateway.start()
    try:
        await gateway.until_ready()
        yield gateway
    finally:
        gateway.kill_with_shipper()


async def test_a_whole_model_that_is_the_base_ties_with_it_and_its_event_says_that_it_is_a_model(
    models: Settings, whole_model: str, tmp_path: Path
) -> None:
    (tmp_path / "models").symlink_to(models.models_folder)
    values = {**models.model_dump(), "home": tmp_path, "artifacts": models.artifacts_uri}
    settings, task = EvaluatorSettings(**values), f"eval-{uuid4().hex[:8]}"
    store, spec = ArtifactStore(models.artifacts_uri, tmp_path), task_spec(task)
    dataset = publish_dataset(store, spec, tmp_path / "data")
    publish_golden_set(store, task, golden_rows())
    trained = adapter_trained(spec, whole_model, store.address("models", whole_model), dataset)
    async with evaluated(settings, trained.model_copy(update={"kind": "model", "rank": None})) as event:
        assert isinstance(event, AdapterEvaluated), event
    assert (event.kind, event.adapter, event.production.adapter) == ("model", whole_model, None)
    assert (event.candidate.failed, event.candidate.accuracy) == (0, event.production.accuracy)
    assert event.gain is not None and event.gain.value == 0.0
    assert event.adversarial is not None and event.gates
    assert whole_model not in store.names(PROBES)


async def test_a_whole_model_is_served_by_name_through_the_gateway_and_ends_with_its_server(
    models: Settings, whole_model: str, gateway: GatewayProcess, test_stack: TestStack | None
) -> None:
    body: dict[str, Any] = {"model": whole_model, "messages": [QUESTION], "temperature": 0, "max_tokens": 12}
    async with httpx.AsyncClient(base_url=models.models, timeout=PATIENCE_SECONDS) as server:
        assert whole_model in (await server.get("/v1/models")).text
        first = (await server.post(CHAT, json=body)).raise_for_status().json()
        assert first["model"] == whole_model and "Paris" in first["choices"][0]["message"]["content"]
        async with gateway.http() as http:
            assert (await http.post(CHAT, json=body)).status_code == 404, "without a key nothing passes"
            key = await with_key(gateway, http)
            answer = (await http.post(CHAT, json=body, headers=key)).raise_for_status().json()
            assert answer["choices"][0]["message"]["content"] == first["choices"][0]["message"]["content"]
            async with http.stream("POST", CHAT, json={**body, "stream": True}, headers=key) as stream:
                pieces = [line async for line in stream.aiter_lines() if line.startswith("data: {")]
            assert len(pieces) > 5
            unknown = await http.post(CHAT, json={**body, "model": "no-such-model"}, headers=key)
            assert unknown.status_code == 404 and whole_model in unknown.json()["error"]["message"]
    if test_stack is not None:
        await check_that_it_ends(StackConfig.load(test_stack.home, test_stack.env))


async def check_that_it_ends(config: StackConfig) -> None:
    """Kill the server, whose supervisor starts it again: all of vLLM's processes end with it.

    That a server which is stopped ends its models, too, a stand-in for vLLM shows.
    """
    killed = server_of(config)
    assert killed is not None
    engine = await asyncio.to_thread(killed.children, recursive=True)
    assert len(engine) >= 3, "vLLM's API server, its engine and its worker"
    killed.kill()
    await until(lambda: not any(map(runs, engine)))
    again = await until(lambda: (server := server_of(config)) != killed and server)
    await asyncio.to_thread(stack.down, ["models"], config.home)
    await until(lambda: not runs(again))


def server_of(config: StackConfig) -> psutil.Process | None:
    record = records.read(config, "models")
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(record.child.pid) if record and record.child else None
    return None


def runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
