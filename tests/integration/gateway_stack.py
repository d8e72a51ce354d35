"""A gateway between a real broker, Unleash and vLLM, with a task of each kind."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest
from aiokafka import AIOKafkaConsumer

from schemas.base import Event
from schemas.catalog import topic_of
from schemas.tasks import RedactionSettings, TaskKind, TaskSpec
from services.gateway.main import build
from services.gateway.settings import GatewaySettings
from shared.kafka.topics import create_topics
from shared.service import running
from shared.settings import Settings
from tests.conftest import free_ports
from tests.integration.gateway_process import publish_task

LABELS = ("card lost", "refund", "top up")
MESSAGES = [{"role": "user", "content": "I can't find my card anywhere"}]


class UnleashAdmin:
    """As much of Unleash's admin API as makes, switches and removes a task's flags."""

    def __init__(self, settings: Settings) -> None:
        self._http = httpx.AsyncClient(
            base_url=f"{settings.unleash}/api/admin/", headers={"Authorization": settings.unleash_admin_token}
        )
        self._features = "projects/default/features"
        self._made: list[str] = []

    async def create(self, flag: str, payload: dict[str, Any] | None, stickiness: str = "default") -> None:
        """A flag that is on for everyone, its variant with this payload."""
        await self._call("POST", self._features, {"name": flag, "type": "release"})
        self._made.append(flag)
        parameters = {"rollout": "100", "stickiness": stickiness, "groupId": flag}
        strategy: dict[str, Any] = {"name": "flexibleRollout", "constraints": [], "parameters": parameters}
        if payload is not None:
            value = {"type": "json", "value": json.dumps(payload)}
            strategy["variants"] = [
                {"name": "v", "weight": 1000, "weightType": "variable", "stickiness": "default", "payload": value}
            ]
        await self._call("POST", f"{self._features}/{flag}/environments/development/strategies", strategy)
        await self.switch(flag, "on")

    async def switch(self, flag: str, to: str) -> None:
        await self._call("POST", f"{self._features}/{flag}/environments/development/{to}")

    async def clear(self) -> None:
        for flag in self._made:
            await self._call("DELETE", f"{self._features}/{flag}")
            await self._call("DELETE", f"archive/{flag}")
        self._made = []

    async def close(self) -> None:
        await self.clear()
        await self._http.aclose()

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        (await self._http.request(method, path, json=body)).raise_for_status()


@dataclass
class Gateway:
    """`task` is a classification, `free` a generation without a prompt of its own: as vLLM itself would answer."""

    url: str
    task: str
    free: str
    base_model: str
    settings: Settings
    http: httpx.AsyncClient
    client: openai.AsyncOpenAI
    unleash: UnleashAdmin

    async def ask(self, user: str = "ann", **more: Any) -> httpx.Response:
        body = {"model": self.task, "messages": MESSAGES, "user": user, **more}
        return await self.http.post("/v1/chat/completions", json=body)

    async def until_variant(self, variant: str, seconds: float = 3.0) -> httpx.Response:
        """Ask until this arm answers; the issue allows a flag three seconds, and one more answer's time."""
        deadline = time.monotonic() + seconds
        while True:
            asked_at = time.monotonic()
            response = await self.ask()
            if response.headers["x-ratchet-variant"] == variant:
                return response
            assert asked_at < deadline, dict(response.headers)

    async def event(self, kind: type[Event], prediction_id: str, count: int = 1, seconds: float = 20.0) -> list[Any]:
        """The events of this kind about this prediction; waits for so many."""
        consumer = AIOKafkaConsumer(
            topic_of(kind).name, bootstrap_servers=self.settings.kafka.split(","), auto_offset_reset="earliest"
        )
        await consumer.start()
        found: list[Any] = []
        try:
            deadline = time.monotonic() + seconds
            while len(found) < count and time.monotonic() < deadline:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    found += [kind.model_validate_json(r.value) for r in records if r.key == prediction_id.encode()]
        finally:
            await consumer.stop()
        return found


async def _until_ready(http: httpx.AsyncClient, task: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if (await http.get("/readyz")).status_code == 200 and (await http.get(f"/v1/models/{task}")).is_success:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "the gateway did not get ready"
        await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
async def gateway(
    stack_settings: Settings, vllm: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway]:
    home: Path = tmp_path_factory.mktemp("gateway")
    values = {**stack_settings.model_dump(), "home": home, "gateway_port": free_ports(1)[0]}
    settings = GatewaySettings(**values)
    await asyncio.to_thread(create_topics, settings)
    async with httpx.AsyncClient() as anyone:
        served = (await anyone.get(f"{settings.vllm_urls[0]}/v1/models")).json()["data"]
    base_model = next(model["id"] for model in served if model.get("parent") is None)
    spec = TaskSpec(
        name=f"gateway-{uuid4().hex[:8]}", kind=TaskKind.CLASSIFICATION, base_model=base_model,
        system_prompt="Name the intent of the message.", labels=LABELS, max_answer_tokens=12,
        cron="0 0 29 2 *",  # The topic keeps this task for good: it must not start cycles on a stack that lives on.
    )  # fmt: skip
    free = TaskSpec(
        name=f"{spec.name}-free", kind=TaskKind.GENERATION, base_model=base_model, system_prompt="",
        max_answer_tokens=12, cron=spec.cron,
        redaction=RedactionSettings(enabled=False),  # Its logged answers are compared with what the client got.
    )  # fmt: skip
    for one in (spec, free):
        await publish_task(settings, one)
    url = f"http://127.0.0.1:{settings.gateway_port}"
    unleash = UnleashAdmin(settings)
    async with (
        running([build(settings)]),
        httpx.AsyncClient(base_url=url, timeout=120) as http,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client,
    ):
        for one in (spec, free):
            await _until_ready(http, one.name)
        yield Gateway(url, spec.name, free.name, base_model, settings, http, client, unleash)
        await unleash.close()
