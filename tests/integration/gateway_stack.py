"""A gateway with a real broker, Unleash and vLLM, and a task of each kind."""

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

from deploy.devstack.ports import take_ports
from schemas.base import Event
from schemas.catalog import topic_of
from schemas.predictions import LoggedAnswer, PredictionLogged
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskKind, TaskSpec
from services.gateway.main import build
from services.gateway.settings import GatewaySettings
from shared.kafka.topics import create_topics
from shared.service import running
from shared.settings import Settings
from tests.integration.gateway_process import publish_task
from tests.waiting import PATIENCE_SECONDS, until

LABELS = ("card lost", "refund", "top up")
MESSAGES = [{"role": "user", "content": "I can't find my card anywhere"}]


class UnleashAdmin:
    """Creates, switches and archives a task's flags by Unleash's admin API. A name is taken for good.

    An archived flag is not deleted: Unleash 8.2.0 exits if the archive's own event then finds no row to refer to.
    """

    def __init__(self, settings: Settings) -> None:
        self._http = httpx.AsyncClient(
            base_url=f"{settings.unleash}/api/admin/",
            headers={"Authorization": settings.unleash_admin_token},
            timeout=PATIENCE_SECONDS,
        )
        self._features = "projects/default/features"
        self._created: list[str] = []

    async def create(self, flag: str, payload: dict[str, Any] | None, stickiness: str = "default") -> None:
        """Create a flag that is on for everyone, with this payload in its variant."""
        await self._call("POST", self._features, {"name": flag, "type": "release"})
        self._created.append(flag)
        parameters = {"rollout": "100", "stickiness": stickiness, "groupId": flag}
        strategy: dict[str, Any] = {"name": "flexibleRollout", "constraints": [], "parameters": parameters}
        if payload is not None:
            value = {"type": "json", "value": json.dumps(payload)}
            strategy["variants"] = [
                {"name": "v", "weight": 1000, "weightType": "variable", "stickiness": "default", "payload": value}
            ]
        await self._call("POST", f"{self._features}/{flag}/environments/development/strategies", strategy)
        await self.switch(flag, "on")

    async def switch(self, flag: str, state: str) -> None:
        await self._call("POST", f"{self._features}/{flag}/environments/development/{state}")

    async def clear(self) -> None:
        for flag in self._created:
            await self._call("DELETE", f"{self._features}/{flag}")
        self._created = []

    async def close(self) -> None:
        await self.clear()
        await self._http.aclose()

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        (await self._http.request(method, path, json=body)).raise_for_status()


@dataclass
class Gateway:
    """A running gateway. `task`: a classification; `free`: a generation without a prompt, as vLLM would answer."""

    url: str
    task: str
    free: str
    base_model: str
    settings: Settings
    http: httpx.AsyncClient
    client: openai.AsyncOpenAI
    unleash: UnleashAdmin

    async def ask(self, user: str = "ann", **fields: Any) -> httpx.Response:
        body = {"model": self.task, "messages": MESSAGES, "user": user, **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def until_variant(self, variant: str) -> httpx.Response:
        """Send requests until this variant answers, and return its response."""

        async def answer() -> httpx.Response | None:
            response = await self.ask()
            return response if response.headers["x-ratchet-variant"] == variant else None

        return await until(answer, f"{variant} answers")

    async def logged(self, prediction_id: str) -> tuple[PredictionLogged, LoggedAnswer]:
        """Wait for the event with this answer; return both."""
        (event,) = await self.event(PredictionLogged, prediction_id)
        return event, next(answer for answer in event.answers if answer.prediction_id == prediction_id)

    async def event(self, kind: type[Event], prediction_id: str, count: int = 1) -> list[Any]:
        """Wait for `count` events of this kind about this prediction, and return them."""
        consumer = AIOKafkaConsumer(
            topic_of(kind).name, bootstrap_servers=self.settings.kafka.split(","), auto_offset_reset="earliest"
        )
        await consumer.start()
        found: list[Any] = []
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while len(found) < count and time.monotonic() < deadline:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    found += [
                        kind.model_validate_json(record.value)
                        for record in records
                        if prediction_id.encode() in record.value
                    ]
        finally:
            await consumer.stop()
        return found


async def until_ready(http: httpx.AsyncClient, task: str) -> None:
    async def is_ready() -> bool:
        try:
            return (await http.get("/readyz")).is_success and (await http.get(f"/v1/models/{task}")).is_success
        except httpx.TransportError:
            return False

    await until(is_ready, "the gateway is ready")


@pytest.fixture(scope="module")
async def gateway(
    stack_settings: Settings, vllm: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway]:
    home: Path = tmp_path_factory.mktemp("gateway")
    values = {**stack_settings.model_dump(), "home": home, "gateway_port": take_ports(1)[0]}
    settings = GatewaySettings(**values)
    await asyncio.to_thread(create_topics, settings)
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        served = (await http.get(f"{settings.vllm_urls[0]}/v1/models")).json()["data"]
    base_model = next(model["id"] for model in served if model.get("parent") is None)
    spec = TaskSpec(
        name=f"gateway-{uuid4().hex[:8]}", kind=TaskKind.CLASSIFICATION, base_model=base_model,
        system_prompt="Name the intent of the message.", labels=LABELS, max_answer_tokens=12,
        cron="0 0 29 2 *",  # The topic is compacted: the task stays, and must not start cycles on a shared stack.
    )  # fmt: skip
    free = TaskSpec(
        name=f"{spec.name}-free", kind=TaskKind.GENERATION, base_model=base_model, system_prompt="",
        max_answer_tokens=12, cron=spec.cron,
        redaction=RedactionSettings(enabled=False),  # Its logged answers are compared with those that the client got.
    )  # fmt: skip
    for task in (spec, free):
        await publish_task(settings, task)
    url = f"http://127.0.0.1:{settings.gateway_port}"
    unleash = UnleashAdmin(settings)
    async with (
        running([build(settings)]),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS) as http,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client,
    ):
        for task in (spec, free):
            await until_ready(http, task.name)
        yield Gateway(url, spec.name, free.name, base_model, settings, http, client, unleash)
        await unleash.close()
