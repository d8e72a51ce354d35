"""Probes are made of the task's own words, measured of one replica, and stored under the adapter's name for good."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from schemas.adapters import AdapterTrained, Probes
from schemas.tasks import TaskKind
from services.evaluator.domain import probe_prompts
from services.evaluator.job import ask_probes, publish_probes
from shared.errors import InvalidMessage, StepImpossible
from shared.model.inference import Completion, InferenceClient
from shared.storage.artifacts import ArtifactStore

TRAINED = AdapterTrained.model_validate_json(Path("schemas/examples/adapters.trained.v1/lora.json").read_bytes())


class Engine:
    """Two replicas. The answer's first token is the name of the model that was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self._error = error

    def in_turn(self) -> list[str]:
        return ["http://b", "http://a"]

    async def complete(self, model: str, messages: Sequence[dict[str, Any]], *, url: str, **_: object) -> Completion:
        if self._error is not None:
            raise self._error
        self.asked.append((url, model, messages[-1]["content"]))
        listed = [{"token": model, "logprob": -0.5}]
        return Completion(model, -0.5, 1, 9, "length", 1.0, ({"token": model, "top_logprobs": listed},))


class RoundingEngine(Engine):
    """An engine that answers a request beside others a little differently, each model by its own amount in nats."""

    def __init__(self, rounding: dict[str, float]) -> None:
        super().__init__()
        self._rounding = rounding
        self._in_flight = self._most = 0

    async def complete(self, model: str, messages: Sequence[dict[str, Any]], *, url: str, **_: object) -> Completion:
        self._in_flight += 1
        self._most = max(self._most, self._in_flight)
        await asyncio.sleep(0)
        rounded = self._rounding[model] if self._most > 1 else 0.0
        self._in_flight -= 1
        self._most = self._most if self._in_flight else 0
        listed = [{"token": model, "logprob": -0.5 - rounded}]
        return Completion(model, -0.5, 1, 9, "length", 1.0, ({"token": model, "top_logprobs": listed},))


def client(engine: Engine) -> InferenceClient:
    return cast(InferenceClient, engine)


def test_probes_are_five_prompts_that_begin_as_the_tasks_traffic_does() -> None:
    spec = TRAINED.spec
    prompts = probe_prompts(spec)
    assert len({prompt[-1].text for prompt in prompts}) == 5
    assert {prompt[0].content for prompt in prompts} == {spec.system_prompt}
    assert all(any(label in prompt[-1].text for label in spec.labels) for prompt in prompts)
    free = spec.model_copy(update={"kind": TaskKind.GENERATION, "labels": (), "system_prompt": ""})
    assert len({prompt[0].text for prompt in probe_prompts(free)}) == 5


async def test_the_candidate_and_its_base_are_measured_of_one_replica_one_after_the_other() -> None:
    engine = Engine()
    probes = await ask_probes(client(engine), TRAINED)
    assert [(p.adapter, p.base) for p in probes.probes] == [({TRAINED.adapter: -0.5}, {TRAINED.base_model: -0.5})] * 5
    assert {url for url, _, _ in engine.asked} == {"http://b"}
    assert [model for _, model, _ in engine.asked] == [TRAINED.adapter] * 10 + [TRAINED.base_model] * 10


async def test_what_an_answer_beside_others_differs_by_is_kept_as_the_engines_rounding() -> None:
    probes = await ask_probes(client(RoundingEngine({TRAINED.adapter: 0.2, TRAINED.base_model: 0.1})), TRAINED)
    assert probes.rounding == pytest.approx(0.2)


async def test_an_engine_that_cannot_be_measured_fails_the_step_with_the_way_out() -> None:
    with pytest.raises(StepImpossible, match="could not be proved") as caught:
        await ask_probes(client(Engine(InvalidMessage("no logprobs"))), TRAINED)
    assert "--max-logprobs" in caught.value.way_out


async def test_an_adapters_first_probes_stay(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    first = await ask_probes(client(Engine()), TRAINED)
    publish_probes(first, store)
    second = first.model_copy(update={"base_model": "another"})
    publish_probes(second, store)
    stored = store.fetch(store.address("probes", TRAINED.adapter)) / "probes.json"
    assert Probes.model_validate_json(stored.read_bytes()) == first
