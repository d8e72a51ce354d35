"""Both arms are asked through vLLM's API; a failure is the candidate's only if the engine is well."""

from __future__ import annotations

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

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts or ("engine",)
        self.status: dict[str, int] = {}
        self.away: set[str] = set()
        """Hosts that do not answer."""
        self.broken_on: dict[str, set[str]] = {}
        """Models that fail on a host."""
        self.missing_on: dict[str, set[str]] = {}
        """Models that a host does not serve, until it is asked to load them."""
        self.unloadable_on: dict[str, set[str]] = {}
        """Models whose files a host's resolver finds, and cannot load."""
        self.full: set[str] = set()
        """Hosts that load nothing."""
        self.loaded: list[str] = []
        self.bodies: list[dict[str, Any]] = []

    def replay_engine(self) -> VllmEngine:
        inference = InferenceClient([f"http://{host}" for host in self.hosts], 1.0)
        inference._client = httpx.AsyncClient(transport=httpx.MockTransport(self.handle))
        return VllmEngine(inference, FixedArtifacts())

    async def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.host in self.away:
            raise httpx.ConnectError("refused")
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": []})
        body = json.loads(request.content)
        if request.url.path == "/v1/load_lora_adapter":
            if request.url.host in self.full:
                return httpx.Response(400, json={"error": "no"})
            self.loaded.append(body["lora_name"])
            self.missing_on.get(request.url.host, set()).discard(body["lora_name"])
            if self.status.get(body["lora_name"]) == 404:
                self.status[body["lora_name"]] = 200
            return httpx.Response(200, json={})
        self.bodies.append(body)
        if body["model"] in self.missing_on.get(request.url.host, ()):
            return httpx.Response(404, json={"error": "no"})
        if body["model"] in self.unloadable_on.get(request.url.host, ()):
            said = f"LoRA adapter '{body['model']}' was found but could not be loaded."
            return httpx.Response(400, json={"error": {"message": said, "code": 400}})
        broken = body["model"] in self.broken_on.get(request.url.host, ())
        status = 500 if broken else self.status.get(body["model"], 200)
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
    assert replay is not None
    assert replay.answer == Answer(text="delivery", finish_reason=FinishReason.STOP)
    (body,) = engine.bodies
    assert (body["model"], body["temperature"]) == ("a1", 0.0)
    assert body["structured_outputs"] == {"choice": ["delivery", "refund"]}
    assert body["messages"][0] == {"role": "system", "content": "Classify."}


@pytest.mark.parametrize("status", [400, 500])
async def test_a_candidate_that_fails_where_production_answers_has_erred(status: int) -> None:
    engine = Engine()
    engine.status["a1"] = status
    replay = await engine.replay_engine().candidate(rollout(), asked())
    assert replay is not None
    assert replay.answer is None


@pytest.mark.parametrize("primary", [None, "a0"])
async def test_one_of_two_replicas_that_is_away_costs_the_candidate_nothing(primary: str | None) -> None:
    """It cost a healthy candidate 19 of 20 pairs: the replay tried one replica, and the check asked the other."""
    engine = Engine("one", "two")
    engine.away = {"one"}
    replays = engine.replay_engine()
    for number in range(20):
        replay = await replays.candidate(rollout(primary=primary), asked(number))
        assert replay is not None
        assert replay.answer is not None
        assert (await replays.production(rollout(primary=primary), asked(number))).answer is not None


async def test_a_candidate_that_one_replica_cannot_serve_is_answered_by_the_other() -> None:
    engine = Engine("one", "two")
    engine.broken_on = {"two": {"a1"}}
    replays = [await engine.replay_engine().candidate(rollout(), asked(number)) for number in range(4)]
    assert all(replay is not None and replay.answer is not None for replay in replays)


async def test_a_replica_that_restarted_serves_the_candidate_again_while_another_one_is_away() -> None:
    """The replica that was away was asked first to serve it, and the one that could was not: each replay was lost."""
    engine = Engine("one", "two")
    engine.away, engine.missing_on = {"one"}, {"two": {"a1"}}
    replays = engine.replay_engine()
    for number in range(4):
        replay = await replays.candidate(rollout(), asked(number))
        assert replay is not None
        assert replay.answer is not None
    assert engine.loaded == ["a1"]


async def test_a_replica_that_does_not_serve_the_candidate_leaves_it_to_the_other() -> None:
    engine = Engine("one", "two")
    engine.missing_on, engine.full = {"one": {"a1"}}, {"one"}
    replays = engine.replay_engine()
    found = [await replays.candidate(rollout(), asked(number)) for number in range(4)]
    assert all(replay is not None and replay.answer is not None for replay in found)
    engine.missing_on, engine.full = {"one": {"a1"}, "two": {"a1"}}, {"one", "two"}
    replay = await replays.candidate(rollout(), asked())
    assert replay is not None
    assert replay.answer is None, "production answers there"


async def test_a_replica_that_finds_the_candidate_and_cannot_load_it_leaves_it_to_the_other() -> None:
    """vLLM says 400 then, as of a request that no replica would answer: half of the pairs were lost."""
    engine = Engine("one", "two")
    engine.unloadable_on = {"one": {"a1"}}
    replays = engine.replay_engine()
    found = [await replays.candidate(rollout(), asked(number)) for number in range(4)]
    assert all(replay is not None and replay.answer is not None for replay in found)


async def test_a_request_that_fails_on_production_too_is_void() -> None:
    engine = Engine("one", "two")
    engine.status |= {"a1": 500, "a0": 500}
    assert await engine.replay_engine().candidate(rollout(primary="a0"), asked()) is None
    engine.status["a0"] = 200
    replay = await engine.replay_engine().candidate(rollout(primary="a0"), asked())
    assert replay is not None
    assert replay.answer is None


async def test_production_must_answer_on_the_replica_on_which_the_candidate_failed() -> None:
    engine = Engine("one", "two")
    engine.status["a1"] = 400  # The first one refuses: a refusal is final, so the other one is not asked.
    engine.broken_on = {"one": {"a0"}}
    assert await engine.replay_engine().candidate(rollout(primary="a0"), asked()) is None


async def test_when_the_base_model_fails_too_the_engine_is_unavailable() -> None:
    engine = Engine()
    engine.status |= {"a1": 500, "base": 503}
    with pytest.raises(DependencyUnavailable):
        await engine.replay_engine().candidate(rollout(), asked())


async def test_the_adapter_is_loaded_again_into_a_restarted_replica() -> None:
    engine = Engine()
    engine.status["a1"] = 404
    replay = await engine.replay_engine().candidate(rollout(), asked())
    assert replay is not None
    assert replay.answer is not None
    assert engine.loaded == ["a1"]


async def test_a_candidate_whose_folder_cannot_be_read_has_not_erred() -> None:
    engine = Engine()
    engine.status["a1"] = 404
    away = rollout().model_copy(update={"candidate_uri": "/artifacts/adapters/gone"})
    with pytest.raises(DependencyUnavailable, match="no such artifact"):
        await engine.replay_engine().candidate(away, asked())


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
