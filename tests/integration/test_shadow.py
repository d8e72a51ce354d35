"""Shadow on real Unleash and vLLM, and shadow and deployer together on the real broker: from verdict to promotion."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer

from deploy.devstack.ports import take_ports
from schemas.adapters import AdapterTrained
from schemas.base import Event, Variant, utc_now
from schemas.catalog import topic_of
from schemas.conversation import Api, Call, FinishReason, Message, Part, Role
from schemas.labels import CorrectionSubmitted, LabelRequested
from schemas.predictions import LoggedAnswer, PredictionLogged
from schemas.rollouts import RolloutChanged, ShadowCompared, Stage
from schemas.task_settings import RolloutSettings
from schemas.tasks import TaskKind, TaskSpec
from services.deployer.clients import Strategy, UnleashAdmin
from services.deployer.main import build as build_deployer
from services.deployer.settings import DeployerSettings
from services.evaluator.job import ask_probes, publish_probes
from services.shadow.clients import StoredTrainingIndexes, UnleashSampling
from services.shadow.load import VllmLoad
from services.shadow.main import build as build_shadow
from services.shadow.settings import ShadowSettings
from shared.conversation import replay_request
from shared.errors import DependencyUnavailable
from shared.kafka.broker import build_broker
from shared.kafka.publisher import Publisher
from shared.model.inference import CHAT, InferenceClient
from shared.model.probes import tolerance
from shared.service import running
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from tests.integration.consumer_groups import skip_backlog
from tests.integration.test_local_vllm import write_adapter
from tests.unit.deployer.fakes import answer, evaluated
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack

BASE = "SmolLM2-135M-Instruct"
TRAINED = AdapterTrained.model_validate_json(Path("schemas/examples/adapters.trained.v1/lora.json").read_bytes())
NOT_A_LABEL = "none of these"


@asynccontextmanager
async def following(settings: Settings, task: str, *kinds: type[Event]) -> AsyncIterator[dict[type[Event], list[Any]]]:
    """All events of these kinds about the task, as they come, outside of any consumer group."""
    by_topic = {topic_of(kind).name: kind for kind in kinds}
    found: dict[type[Event], list[Any]] = {kind: [] for kind in kinds}
    consumer = AIOKafkaConsumer(*by_topic, bootstrap_servers=settings.kafka, auto_offset_reset="earliest")

    async def follow() -> None:
        async for record in consumer:
            if task.encode() in (record.value or b""):  # Other tests leave what is no JSON.
                kind = by_topic[record.topic]
                found[kind].append(kind.model_validate_json(record.value))

    await consumer.start()
    reading = asyncio.create_task(follow())
    try:
        yield found
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await consumer.stop()


def publish_adapter(store: ArtifactStore, model: Path, name: str, folder: Path) -> str:
    """Publish a random adapter, which answers unlike its base."""
    write_adapter(folder, model, BASE, seed=20)
    (folder / "manifest.json").write_text("{}")
    return store.publish(folder, "adapters", name)


def publish_rows(store: ArtifactStore, name: str, folder: Path, *texts: str) -> str:
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "example_id": f"e{number}", "group": f"g{number}", "prediction_ids": [], "correction_ids": [],
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "refund"}],
        }
        for number, text in enumerate(texts)
    ]  # fmt: skip
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "manifest.json").write_text("{}")
    return store.publish(folder, "datasets", name)


def prediction(spec: TaskSpec, number: int, text: str) -> PredictionLogged:
    messages = (Message(role=Role.SYSTEM, content=spec.system_prompt), Message(role=Role.USER, content=text))
    name = f"{spec.name}.{number}"
    return PredictionLogged(
        task=spec.name,
        task_revision=spec.revision,
        request_id=f"request-{name}",
        call=Call(messages=messages, constrained=True, parameters={"temperature": 0.0, "max_tokens": 16}),
        answers=(LoggedAnswer(prediction_id=name, text=NOT_A_LABEL, finish_reason=FinishReason.STOP),),
        model=BASE,
        variant=Variant.BASE,
        user_hash=f"user-{number}",
        subject=f"user-{number}",
        latency_ms=1.0,
    )


async def test_the_real_flag_samples_pauses_and_is_repeatable(stack_settings: Settings, tmp_path: Path) -> None:
    task = f"task-{uuid4().hex[:8]}"
    flag = f"ratchet.{task}.shadow"
    admin = UnleashAdmin(stack_settings.unleash, stack_settings.unleash_admin_token)
    await admin.ensure(flag, "a test", Strategy(percent=50, stickiness="userId"))
    await admin.switch(flag, True)
    sampling = UnleashSampling(
        stack_settings.unleash, stack_settings.unleash_client_token, "development", tmp_path / "flags"
    )
    await sampling.start()
    ids = [f"{task}.{number}" for number in range(400)]

    def any_sampled() -> bool:
        with contextlib.suppress(DependencyUnavailable):  # A new Unleash may still say that it has no flags at all.
            return any(sampling.sampled(task, prediction_id) for prediction_id in ids)
        return False

    await until(any_sampled)
    await until(lambda: not sampling.is_off(task))
    sample = [sampling.sampled(task, prediction_id) for prediction_id in ids]
    assert 140 < sum(sample) < 260
    assert sample == [sampling.sampled(task, prediction_id) for prediction_id in ids]
    await admin.switch(flag, False)
    await until(lambda: not any(sampling.sampled(task, prediction_id) for prediction_id in ids))
    assert sampling.is_off(task)
    await sampling.close()
    await admin.close()


async def test_flags_that_were_never_loaded_are_not_off(tmp_path: Path) -> None:
    sampling = UnleashSampling("http://127.0.0.1:9", "token", "development", tmp_path / "flags")
    await sampling.start()
    with pytest.raises(DependencyUnavailable, match="no flags are loaded"):
        sampling.sampled("task", "p1")
    await sampling.close()


async def test_training_rows_are_read_from_the_artifact_store(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    uri = publish_rows(store, "d1", tmp_path / "rows", "where is my parcel, please?")
    event = evaluated().model_copy(update={"dataset_uri": uri})
    indexes = StoredTrainingIndexes(store)
    index = await indexes.for_rollout(event)  # type: ignore[arg-type]  # it reads dataset_uri and spec, which both have
    assert index.contains((Message(role=Role.USER, content="Where is my parcel please"),))
    assert not index.contains((Message(role=Role.USER, content="I want my money back"),))


async def test_a_logged_call_is_answered_by_vllm_through_each_of_its_apis(vllm: str) -> None:
    system = Message(role=Role.SYSTEM, content="Answer with one label.")
    user = Message(role=Role.USER, content="where is my parcel?")
    parts = user.model_copy(update={"content": (Part(type="text", text="where is"), Part(type="text", text="it?"))})
    earlier = Message(role=Role.ASSISTANT, content="delivery")
    inference = InferenceClient([vllm], 60.0)
    for api, messages, limit in (
        (Api.CHAT, (system, user, earlier, parts), "max_tokens"),
        (Api.RESPONSES, (system, user, earlier, user), "max_output_tokens"),
        (Api.COMPLETIONS, (user,), "max_tokens"),
    ):
        call = Call(api=api, messages=messages, constrained=True, parameters={"temperature": 0.0, limit: 16, "seed": 7})
        path, body = replay_request(call, ("delivery", "refund"))
        answered = await inference.answer(BASE, path, body, vllm)
        assert answered.text in ("delivery", "refund"), api
        assert answered.finish_reason is FinishReason.STOP, api
        _, free = replay_request(call.model_copy(update={"constrained": False}))
        cut = await inference.answer(BASE, path, {**free, limit: 2, "ignore_eos": True}, vllm)
        assert cut.finish_reason is FinishReason.LENGTH, api
    await inference.close()


async def test_shadow_sees_that_requests_wait_in_the_real_vllm(vllm: str) -> None:
    inference = InferenceClient([vllm], 120.0)
    load = VllmLoad(inference)
    assert not await load.is_busy()
    body = {"messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 300, "ignore_eos": True}
    waiting = [asyncio.create_task(inference.answer(BASE, CHAT, body, vllm)) for _ in range(60)]  # 16 run at once.
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await load.is_busy():
            await asyncio.sleep(0.1)
    for request in waiting:
        request.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await load.is_busy():
            await asyncio.sleep(0.1)
    await inference.close()


async def test_a_candidate_goes_from_its_verdict_to_promotion_on_the_real_stack(
    stack_settings: Settings, vllm: str, tmp_path: Path
) -> None:
    task = f"task-{uuid4().hex[:8]}"
    spec = TaskSpec(
        name=task, kind=TaskKind.CLASSIFICATION, base_model=BASE, system_prompt="Answer with one label.",
        labels=("delivery", "refund", "login"),
        rollout=RolloutSettings(
            yearly_false_promotion=0.2, cycles_per_year=1, canary_wealth=2, min_canary_users=0
        ),
    )  # fmt: skip
    store = ArtifactStore(stack_settings.artifacts_uri, tmp_path / "cache")
    adapter = f"{task}-lora"
    seen_before = "the parcel that I ordered has not come"
    verdict = evaluated(adapter, task).model_copy(
        update={
            "adapter_uri": publish_adapter(store, stack_settings.models_folder / BASE, adapter, tmp_path / "adapter"),
            "dataset_uri": publish_rows(store, f"{task}-rows", tmp_path / "rows", seen_before),
            "data_cutoff": utc_now() - timedelta(minutes=1),
            "spec": spec,
            "task_revision": spec.revision,
        }
    )
    inference, trained = (
        InferenceClient([vllm], 120.0),
        TRAINED.model_copy(update={"adapter": adapter, "base_model": BASE}),
    )
    probes = await ask_probes(inference, trained)
    assert tolerance(probes) >= max(0.1, 2 * probes.rounding), "a weaker adapter may be taken for its base"
    publish_probes(probes, store)
    await inference.close()
    values = stack_settings.model_dump()
    await skip_backlog(stack_settings, "deployer", "shadow")
    services = [
        build_deployer(DeployerSettings(**values | {"deployer_port": take_ports(1)[0]}, deployer_tick_seconds=0.5)),
        build_shadow(ShadowSettings(**values)),
    ]
    broker = build_broker(stack_settings, "test")
    kinds = (RolloutChanged, ShadowCompared, LabelRequested)
    async with running(services), following(stack_settings, task, *kinds) as found:
        await broker.start()
        await Publisher(broker, "evaluator").publish(verdict)
        changes: list[RolloutChanged] = found[RolloutChanged]
        await until(lambda: len(changes) >= 2)
        assert changes[1].stage is Stage.SHADOW, changes[1].reason
        await asyncio.sleep(3)  # Shadow polls the flags every second.

        gateway = Publisher(broker, "gateway")
        await gateway.publish(prediction(spec, 0, seen_before.upper()))
        cut = prediction(spec, 99, "a question that was too long for an event")
        await gateway.publish(cut.model_copy(update={"call": cut.call.model_copy(update={"truncated": True})}))
        for number in range(1, 9):
            await gateway.publish(prediction(spec, number, f"question {number}: {'what about it ' * number}"))
        await until(lambda: len(found[LabelRequested]) >= 8)
        assert {pair.prediction_id for pair in found[ShadowCompared]} == {f"{task}.{n}" for n in range(1, 9)}
        assert all(pair.candidate_answer.plain in spec.labels for pair in found[ShadowCompared])

        console = Publisher(broker, "console")
        for asked in found[LabelRequested]:
            await console.publish(correct(asked))
        await until(lambda: changes[-1].stage is Stage.PROMOTED)
        await broker.stop()
    # A move that lasted for more than a minute is published again, with the evidence of the labels meanwhile.
    moves = [move for move, _ in groupby((change.stage, change.canary_percent) for change in changes)]
    assert [stage for stage, _ in moves] == [
        Stage.QUEUED, Stage.SHADOW, Stage.CANARY, Stage.CANARY, Stage.CANARY, Stage.PROMOTED
    ]  # fmt: skip
    assert [percent for stage, percent in moves if stage is Stage.CANARY] == [5, 25, 50]
    assert changes[-1].primary_adapter == adapter


def correct(asked: LabelRequested) -> CorrectionSubmitted:
    """The reviewer says that the candidate, whichever side it is on, was right."""
    (right,) = [given.plain for given in asked.answers if given.plain != NOT_A_LABEL]
    return answer(asked, label=right)
