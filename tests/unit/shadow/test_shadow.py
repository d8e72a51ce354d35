"""Shadow replays only eligible predictions, within its sample and its budget."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from faststream.kafka import KafkaBroker, TestKafkaBroker

from schemas.base import Event, Message, Role, Variant
from schemas.predictions import PredictionLogged
from schemas.rollouts import Evidence, RolloutChanged, ShadowCompared, Stage
from schemas.tasks import RolloutSettings, TaskKind, TaskSpec
from services.shadow.clients import Replay, VllmEngine
from services.shadow.domain import DailyBudget, is_eligible, pair_of, same_answer
from services.shadow.handlers import Handlers
from services.shadow.settings import ShadowSettings
from shared.errors import DependencyUnavailable
from shared.kafka.consumers import Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.publisher import Publisher
from shared.model.inference import InferenceClient
from shared.model.near_duplicates import NearDuplicates
from shared.storage.artifacts import ArtifactStore

CUTOFF = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
SPEC = TaskSpec(
    name="support-desk", kind=TaskKind.CLASSIFICATION, base_model="base", system_prompt="Classify.",
    labels=("delivery", "refund"), rollout=RolloutSettings(shadow_requests_per_day=20),
)  # fmt: skip


def rollout(stage: Stage = Stage.SHADOW, primary: str | None = None) -> RolloutChanged:
    return RolloutChanged(
        task=SPEC.name,
        task_revision=SPEC.revision,
        cycle_id="cycle-1",
        rollout_id="rollout-1",
        stage=stage,
        primary_adapter=primary,
        candidate_adapter="a1",
        candidate_uri="/artifacts/adapters/a1",
        dataset_uri="/artifacts/datasets/d1",
        data_cutoff=CUTOFF,
        evidence=Evidence(alpha=0.001),
        reason="passed",
        spec=SPEC,
    )


def prediction(number: int = 1, **changes: Any) -> PredictionLogged:
    values: dict[str, Any] = {
        "occurred_at": CUTOFF + timedelta(minutes=1),
        "task": SPEC.name,
        "task_revision": SPEC.revision,
        "prediction_id": f"support-desk.{number}",
        "messages": (
            Message(role=Role.SYSTEM, content="Classify."),
            Message(role=Role.USER, content=f"where is parcel number {number} that I ordered?"),
        ),
        "answer": "refund",
        "model": "base",
        "variant": Variant.BASE,
        "user_hash": f"user-{number}",
        "latency_ms": 1.0,
    }
    return PredictionLogged(**{**values, **changes})


class Sampling:
    def __init__(self, on: bool = True) -> None:
        self.on = on

    def sampled(self, task: str, prediction_id: str) -> bool:
        return self.on


class OneTrainingIndex:
    def __init__(self, *texts: str) -> None:
        self._index = NearDuplicates(texts, 0.8)

    async def for_rollout(self, rollout: RolloutChanged) -> NearDuplicates:
        return self._index


class BothArms:
    def __init__(self, answer: str | None = "delivery") -> None:
        self.given = answer
        self.given_by_production: str | None = "login"
        self.asked = 0
        self.away = False

    async def candidate(self, rollout: RolloutChanged, messages: Any) -> Replay:
        self.asked += 1
        if self.away:
            raise DependencyUnavailable("the engine is away")
        return Replay(self.given, 5.0)

    async def production(self, rollout: RolloutChanged, messages: Any) -> Replay:
        self.asked += 1
        return Replay(self.given_by_production, 5.0)


class Published:
    def __init__(self) -> None:
        self.events: list[Event] = []

    async def publish(self, event: Event) -> None:
        self.events.append(event)


class Shadow:
    """The handlers with Unleash, the training rows and vLLM in memory."""

    def __init__(self, *trained: str) -> None:
        self.sampling, self.candidate, self.published = Sampling(), BothArms(), Published()
        index = OneTrainingIndex(*trained)
        self.handlers = Handlers(ShadowSettings(), self.sampling, index, self.candidate, self.published)

    async def replay(self, *events: PredictionLogged, under: RolloutChanged | None = None) -> list[Any]:
        await self.handlers.rollouts.put(SPEC.name, under or rollout())
        deliveries = [Delivery(e, "predictions.logged.v1", 0, n, MappingProxyType({})) for n, e in enumerate(events)]
        before = len(self.published.events)
        await self.handlers.on_predictions(deliveries)
        return self.published.events[before:]


async def test_an_eligible_prediction_becomes_a_pair() -> None:
    (pair,) = await Shadow().replay(prediction())
    assert isinstance(pair, ShadowCompared)
    assert (pair.production_answer, pair.candidate_answer, pair.agree) == ("refund", "delivery", False)
    assert (pair.user_hash, pair.cycle_id, pair.logged_at) == ("user-1", "cycle-1", CUTOFF + timedelta(minutes=1))


@pytest.mark.parametrize(
    ("changes", "primary"),
    [
        ({"occurred_at": CUTOFF}, None),
        ({"task_revision": "another"}, None),
        ({"variant": Variant.CANARY, "adapter": "a1"}, None),
        ({"variant": Variant.ROLLBACK}, None),
        ({"variant": Variant.EXTERNAL}, None),
        ({"variant": Variant.PRIMARY, "adapter": "old"}, None),
        ({"variant": Variant.BASE}, "a0"),
    ],
)
async def test_only_the_primarys_answer_to_a_new_input_becomes_a_pair(
    changes: dict[str, Any], primary: str | None
) -> None:
    assert not is_eligible(prediction(**changes), rollout(primary=primary))
    assert await Shadow().replay(prediction(**changes), under=rollout(primary=primary)) == []


async def test_the_primary_adapters_answers_are_compared_when_it_serves() -> None:
    served = prediction(variant=Variant.PRIMARY, adapter="a0")
    assert len(await Shadow().replay(served, under=rollout(Stage.CANARY, primary="a0"))) == 1


@pytest.mark.parametrize("stage", [Stage.PROMOTED, Stage.REJECTED, Stage.ROLLED_BACK])
async def test_nothing_is_replayed_without_an_active_candidate(stage: Stage) -> None:
    shadow = Shadow()
    assert await shadow.replay(prediction(), under=rollout(stage)) == []
    assert shadow.candidate.asked == 0


async def test_a_near_duplicate_of_a_training_row_is_not_a_pair() -> None:
    shadow = Shadow("Where is parcel number 1, that I ordered?!")
    assert await shadow.replay(prediction(1)) == []
    other = prediction(2, messages=(Message(role=Role.USER, content="please send my money back"),))
    assert len(await shadow.replay(other)) == 1


async def test_the_flag_pauses_shadow() -> None:
    shadow = Shadow()
    shadow.sampling.on = False
    assert await shadow.replay(prediction()) == []
    shadow.sampling.on = True
    assert len(await shadow.replay(prediction())) == 1


async def test_a_days_budget_is_not_exceeded() -> None:
    shadow = Shadow()
    assert len(await shadow.replay(*[prediction(number) for number in range(30)])) == 20
    assert await shadow.replay(prediction(31)) == []
    assert shadow.candidate.asked == 20


def test_each_task_has_its_own_budget_each_day() -> None:
    budget = DailyBudget()
    day = datetime(2026, 11, 23, 23, 59, tzinfo=UTC)
    assert [budget.take("t", 2, day) for _ in range(3)] == [True, True, False]
    assert budget.take("another", 2, day)
    assert budget.take("t", 2, day + timedelta(minutes=1))


async def test_a_redelivered_prediction_is_the_same_pair() -> None:
    shadow = Shadow()
    (first,) = await shadow.replay(prediction())
    (second,) = await shadow.replay(prediction())
    assert (first.event_id, first.pair_id) == (second.event_id, second.pair_id)
    assert first.pair_id != pair_of(prediction(2), rollout(), "refund", "refund", 1.0, CUTOFF).pair_id


async def test_both_arms_are_asked_again_when_the_stored_text_was_redacted() -> None:
    shadow = Shadow()
    (pair,) = await shadow.replay(prediction(redactions=1))
    assert (pair.production_answer, pair.candidate_answer, pair.agree) == ("login", "delivery", False)
    shadow.candidate.given_by_production = "delivery"
    (pair,) = await shadow.replay(prediction(2, redactions=3))
    assert (pair.production_answer, pair.agree) == ("delivery", True)
    assert shadow.candidate.asked == 4


async def test_without_productions_answer_to_the_stored_text_there_is_no_pair() -> None:
    shadow = Shadow()
    shadow.candidate.given_by_production = None
    assert await shadow.replay(prediction(redactions=1)) == []
    assert shadow.candidate.asked == 1


async def test_both_replays_of_a_redacted_text_count_against_the_budget() -> None:
    shadow = Shadow()
    events = [prediction(number, redactions=1) for number in range(30)]
    assert len(await shadow.replay(prediction(99), *events)) == 1 + 9
    assert shadow.candidate.asked == 1 + 18


async def test_a_candidate_that_errs_disagrees() -> None:
    shadow = Shadow()
    shadow.candidate.given = None
    (pair,) = await shadow.replay(prediction())
    assert (pair.candidate_answer, pair.agree) == (None, False)


async def test_an_unavailable_engine_means_redelivery_and_not_a_loss() -> None:
    shadow = Shadow()
    shadow.candidate.away = True
    with pytest.raises(DependencyUnavailable):
        await shadow.replay(prediction(1), prediction(2))
    assert shadow.published.events == []


def test_answers_that_differ_in_case_and_space_agree() -> None:
    assert same_answer(" Refund\n", "refund")
    assert not same_answer("refund", "refunds")


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


async def test_the_candidate_is_asked_greedily_for_one_of_the_labels() -> None:
    engine = Engine()
    replay = await engine.replay_engine().candidate(rollout(), prediction().messages)
    assert replay.answer == "delivery"
    (body,) = engine.bodies
    assert (body["model"], body["temperature"]) == ("a1", 0.0)
    assert body["structured_outputs"] == {"choice": ["delivery", "refund"]}
    assert body["messages"][0] == {"role": "system", "content": "Classify."}


async def test_replays_are_bounded() -> None:
    engine = Engine()
    replay_engine = engine.replay_engine(concurrency=3)
    await asyncio.gather(*[replay_engine.candidate(rollout(), prediction(n).messages) for n in range(12)])
    assert engine.max_running == 3


async def test_a_candidate_that_fails_while_the_base_answers_has_erred() -> None:
    engine = Engine()
    engine.status["a1"] = 500
    assert (await engine.replay_engine().candidate(rollout(), prediction().messages)).answer is None


async def test_when_the_base_model_fails_too_the_engine_is_unavailable() -> None:
    engine = Engine()
    engine.status |= {"a1": 500, "base": 503}
    with pytest.raises(DependencyUnavailable):
        await engine.replay_engine().candidate(rollout(), prediction().messages)


async def test_the_adapter_is_loaded_again_into_a_restarted_replica() -> None:
    engine = Engine()
    engine.status["a1"] = 404
    assert (await engine.replay_engine().candidate(rollout(), prediction().messages)).answer == "delivery"
    assert engine.loaded == ["a1"]


@pytest.mark.parametrize(("primary", "model"), [(None, "base"), ("a0", "a0")])
async def test_production_is_asked_by_the_name_of_the_adapter_that_serves(primary: str | None, model: str) -> None:
    engine = Engine()
    replay = await engine.replay_engine().production(rollout(primary=primary), prediction().messages)
    assert replay.answer == "delivery"
    assert [body["model"] for body in engine.bodies] == [model]


@pytest.mark.parametrize("primary", [None, "a0", "gone"])
async def test_a_production_arm_that_refuses_the_text_has_no_answer(primary: str | None) -> None:
    engine = Engine()
    engine.status |= {"base": 400, "gone": 404}
    replay_engine = engine.replay_engine()
    replay = await replay_engine.production(rollout(primary=primary), prediction().messages)
    assert (replay.answer is None) == (primary != "a0")


async def test_a_prediction_on_the_broker_becomes_a_pair_on_the_broker() -> None:
    broker = KafkaBroker("nowhere:9092")
    shadow = Shadow()
    handlers = Handlers(
        ShadowSettings(), shadow.sampling, OneTrainingIndex(), shadow.candidate, Publisher(broker, "shadow")
    )
    handlers.subscribe(Consumers(broker, "shadow", ShadowSettings()))
    pairs: list[ShadowCompared] = []

    async def record(event: ShadowCompared) -> None:
        pairs.append(event)

    Consumers(broker, "deployer", ShadowSettings()).on(ShadowCompared, record)
    async with TestKafkaBroker(broker):
        await Publisher(broker, "deployer").publish(rollout())
        await Publisher(broker, "gateway").publish(prediction())
    assert [pair.candidate_answer for pair in pairs] == ["delivery"]
