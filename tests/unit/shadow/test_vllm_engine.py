"""Both arms are asked through vLLM's API, a few at a time; a failure is the candidate's only if the engine is well."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from schemas.conversation import Answer, FinishReason
from services.shadow.clients import VllmEngine
from services.shadow.domain import Request, request_of
from shared.errors import DependencyUnavailable
from shared.model.inference import InferenceClient
from shared.storage.artifacts import ArtifactStore
from tests.unit.shadow.fakes import prediction, rollout


class Engine:
    """An OpenAI-compatible engine behind httpx's mock transport."""

    def __init__(self) -> None:
        self.status: dict[str, int] = {}
        self.loaded: list[str] = []
        self.running = self.max_running = 0
        self.bodies: list[dict[str, Any]] = []

    def replay_engine(self, concurrency: int = 4) -> VllmEngine:
        inference = InferenceClient(["http://engine"], 1.0)
        inference._client = httpx.AsyncClient(transport=httpx.MockTransport(self.handle))
        return VllmEngine(inference, FixedArtifacts(), concurrency)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": []})
        body = json.loads(request.content)
        if request.url.path == "/v1/load_lora_adapter":
            self.loaded.append(body["lora_name"])
            self.status[body["lora_name"]] = 200
            return httpx.Response(200, json={})
        self.bodies.append(body)
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        await asyncio.sleep(0.005)
        self.running -= 1
        status = self.status.get(body["model"], 200)
        choice = {"message": {"content": "delivery"}, "finish_reason": "stop"}
        return httpx.Response(status, json={"choices": [choice]} if status == 200 else {"error": "no"})


class FixedArtifacts(ArtifactStore):
    def __init__(self) -> None:
        pass

    def fetch(self, address: str) -> Any:
        if "gone" in address:
            raise DependencyUnavailable("no such artifact")
        return address

    def address(self, kind: str, name: str) -> str:
        return f"/artifacts/{kind}/{name}"


def asked(number: int = 1) -> Request:
    return request_of(prediction(number), rollout())


async def test_the_candidate_is_asked_what_production_was_asked() -> None:
    engine = Engine()
    replay = await engine.replay_engine().candidate(rollout(), asked())
    assert replay.answer == Answer(text="delivery", finish_reason=FinishReason.STOP)
    (body,) = engine.bodies
    assert (body["model"], body["temperature"]) == ("a1", 0.0)
    assert body["structured_outputs"] == {"choice": ["delivery", "refund"]}
    assert body["messages"][0] == {"role": "system", "content": "Classify."}


async def test_replays_are_bounded() -> None:
    engine = Engine()
    replay_engine = engine.replay_engine(concurrency=3)
    await asyncio.gather(*[replay_engine.candidate(rollout(), asked(n)) for n in range(12)])
    assert engine.max_running == 3


async def test_a_candidate_that_fails_while_the_base_answers_has_erred() -> None:
    engine = Engine()
    engine.status["a1"] = 500
    assert (await engine.replay_engine().candidate(rollout(), asked())).answer is None


async def test_when_the_base_model_fails_too_the_engine_is_unavailable() -> None:
    engine = Engine()
    engine.status |= {"a1": 500, "base": 503}
    with pytest.raises(DependencyUnavailable):
        await engine.replay_engine().candidate(rollout(), asked())


async def test_the_adapter_is_loaded_again_into_a_restarted_replica() -> None:
    engine = Engine()
    engine.status["a1"] = 404
    assert (await engine.replay_engine().candidate(rollout(), asked())).answer is not None
    assert engine.loaded == ["a1"]


@pytest.mark.parametrize(("primary", "model"), [(None, "base"), ("a0", "a0")])
async def test_production_is_asked_by_the_name_of_the_adapter_that_serves(primary: str | None, model: str) -> None:
    engine = Engine()
    replay = await engine.replay_engine().production(rollout(primary=primary), asked())
    assert replay.answer is not None
    assert [body["model"] for body in engine.bodies] == [model]


@pytest.mark.parametrize("primary", [None, "a0", "gone"])
async def test_a_production_arm_that_refuses_the_text_has_no_answer(primary: str | None) -> None:
    engine = Engine()
    engine.status |= {"base": 400, "gone": 404}
    replay_engine = engine.replay_engine()
    replay = await replay_engine.production(rollout(primary=primary), asked())
    assert (replay.answer is None) == (primary != "a0")
