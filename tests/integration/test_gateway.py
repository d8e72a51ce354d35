"""The gateway between a real broker, Unleash and vLLM, asked by the official client."""

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
from schemas.predictions import FeedbackGiven, PredictionLogged, RequestObserved
from schemas.tasks import TaskKind, TaskSpec
from services.gateway.main import build
from services.gateway.settings import GatewaySettings
from shared.service import running
from shared.settings import Settings
from shared.topics import create_topics
from tests.conftest import free_ports
from tests.integration.gateway_process import publish_task

pytestmark = pytest.mark.stack

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
    url: str
    task: str
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
    await publish_task(settings, spec)
    url = f"http://127.0.0.1:{settings.gateway_port}"
    unleash = UnleashAdmin(settings)
    async with (
        running([build(settings)]),
        httpx.AsyncClient(base_url=url, timeout=120) as http,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client,
    ):
        await _until_ready(http, spec.name)
        yield Gateway(url, spec.name, base_model, settings, http, client, unleash)
        await unleash.close()


async def test_the_sync_client_gets_a_label_and_the_prediction_is_on_the_topic(gateway: Gateway) -> None:
    def ask() -> Any:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any") as client:
            return client.chat.completions.create(model=gateway.task, messages=MESSAGES, user="ann")

    answer = await asyncio.to_thread(ask)
    assert answer.choices[0].message.content in LABELS
    assert answer.choices[0].logprobs is None
    (event,) = await gateway.event(PredictionLogged, answer.id)
    assert event.answer == answer.choices[0].message.content
    assert [message.content for message in event.messages][1] == MESSAGES[0]["content"]
    assert event.confidence.score is not None
    assert 0.0 < event.confidence.score < 1.0
    (seen,) = await gateway.event(RequestObserved, answer.id)
    assert (seen.status, seen.confidence) == (200, event.confidence.score)


async def test_the_async_client_gets_logprobs_if_it_asks(gateway: Gateway) -> None:
    answer = await gateway.client.chat.completions.create(
        model=gateway.task, messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs.content


async def test_a_stream_gives_the_label(gateway: Gateway) -> None:
    stream = await gateway.client.chat.completions.create(model=gateway.task, messages=MESSAGES, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) in LABELS
    assert await gateway.event(PredictionLogged, chunks[0].id)


async def test_feedback_reaches_the_topic(gateway: Gateway) -> None:
    prediction_id = (await gateway.ask()).headers["x-ratchet-prediction-id"]
    body = {"prediction_id": prediction_id, "kind": "label", "text": LABELS[0], "user": "ann"}
    assert (await gateway.http.post("/v1/feedback", json=body)).status_code == 200
    (event,) = await gateway.event(FeedbackGiven, prediction_id)
    assert (event.kind, event.text) == ("label", LABELS[0])
    body["text"] = "no such label"
    assert (await gateway.http.post("/v1/feedback", json=body)).status_code == 422
    body["prediction_id"] = prediction_id[:-1] + ("0" if prediction_id[-1] != "0" else "1")
    assert (await gateway.http.post("/v1/feedback", json=body)).status_code == 404


async def test_an_answer_made_elsewhere_reaches_the_topic(gateway: Gateway) -> None:
    body = {"task": gateway.task, "messages": MESSAGES, "answer": LABELS[1], "latency_ms": 3}
    (prediction_id,) = (await gateway.http.post("/v1/predictions", json=body)).json()["prediction_ids"]
    (event,) = await gateway.event(PredictionLogged, prediction_id)
    assert (event.variant, event.answer) == ("external", LABELS[1])


async def test_bad_input_is_told_apart(gateway: Gateway) -> None:
    create = gateway.client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match=gateway.task):
        await create(model="no-such-task", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="at least one message"):
        await create(model=gateway.task, messages=[])
    with pytest.raises(openai.APIStatusError) as caught:
        await create(model=gateway.task, messages=[{"role": "user", "content": "x" * 300_000}])
    assert caught.value.status_code == 413
    assert (await gateway.http.post("/v1/chat/completions", content=b"{")).status_code == 400
    long = [{"role": "user", "content": "word " * 6_000}]
    with pytest.raises(openai.BadRequestError, match=r"(?i)context|tokens"):  # The engine's own refusal.
        await create(model=gateway.task, messages=long)


async def test_flags_move_the_traffic_within_three_seconds(gateway: Gateway) -> None:
    # Any name that vLLM serves can stand for an adapter; the base's own does, so that this test trains nothing.
    flag, served = f"ratchet.{gateway.task}", gateway.base_model
    assert (await gateway.ask()).headers["x-ratchet-variant"] == "base"
    await gateway.unleash.create(f"{flag}.primary", {"adapter": served, "previous": served})
    response = await gateway.until_variant("primary")
    assert response.headers["x-ratchet-adapter"] == served
    await gateway.unleash.create(f"{flag}.rollback", None)
    await gateway.until_variant("rollback")
    await gateway.unleash.switch(f"{flag}.rollback", "off")
    await gateway.until_variant("primary")
    await gateway.unleash.create(f"{flag}.canary", {"adapter": served}, stickiness="userId")
    await gateway.until_variant("canary")
    without_user = await gateway.http.post("/v1/chat/completions", json={"model": gateway.task, "messages": MESSAGES})
    assert without_user.headers["x-ratchet-variant"] == "primary"
    await gateway.unleash.switch(f"{flag}.canary", "off")
    await gateway.unleash.switch(f"{flag}.primary", "off")
    await gateway.until_variant("base")
    await gateway.unleash.clear()


async def test_a_canary_that_is_not_served_is_an_error_of_the_canary_and_the_base_answers(gateway: Gateway) -> None:
    flag = f"ratchet.{gateway.task}.canary"
    await gateway.unleash.create(flag, {"adapter": "never-trained"}, stickiness="userId")
    deadline = time.monotonic() + 15.0
    response = await gateway.ask()
    while "x-ratchet-instead-of" not in response.headers:
        assert time.monotonic() < deadline
        response = await gateway.ask()
    assert response.status_code == 200
    assert response.headers["x-ratchet-variant"] == "base"
    seen = await gateway.event(RequestObserved, response.headers["x-ratchet-prediction-id"], count=2)
    assert {(event.variant.value, event.status) for event in seen} == {("canary", 404), ("base", 200)}
    await gateway.unleash.clear()
