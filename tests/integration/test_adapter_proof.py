"""The deployer's proof on a real vLLM: what it serves under an adapter's name, and that a lost adapter comes back."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from deploy.devstack.ports import take_ports
from schemas.adapters import AdapterTrained
from schemas.catalog import topic_of
from schemas.rollouts import RolloutChanged, Stage
from services.deployer.clients import VllmAdapterServer
from services.deployer.main import build
from services.deployer.replicas import AdapterReplicas
from services.deployer.rollout import ServingState, candidate_of
from services.deployer.settings import DeployerSettings
from services.evaluator.job import ask_probes, publish_probes
from shared.errors import InvalidMessage
from shared.kafka.broker import build_broker
from shared.kafka.publisher import Publisher
from shared.model.inference import InferenceClient
from shared.service import running
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from tests.integration.consumer_groups import skip_backlog
from tests.integration.test_evaluator import publish_empty_adapter
from tests.integration.test_local_vllm import write_adapter
from tests.unit.deployer.fakes import MemoryAdmin, MemoryRollouts, evaluated
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.stack

TRAINED = AdapterTrained.model_validate_json(Path("schemas/examples/adapters.trained.v1/lora.json").read_bytes())
BASE = "SmolLM2-135M-Instruct"


class RealFleet:
    """One vLLM, the stack's artifact store, and adapters with the probes that the evaluator measured of them."""

    def __init__(self, settings: Settings, home: Path) -> None:
        self.url = settings.vllm_urls[0]
        self.store = ArtifactStore(settings.artifacts_uri, home)
        self.inference = InferenceClient([self.url])
        self.rollouts = MemoryRollouts()
        deployer = DeployerSettings(vllm=self.url)
        self.fleet = AdapterReplicas(self.inference, self.store, self.rollouts, MemoryAdmin(), deployer)
        self.server = VllmAdapterServer(self.fleet, self.store, 16)
        (self.replica,) = self.fleet.replicas
        self._base = settings.models_folder / BASE
        self._home = home
        self._spec = TRAINED.spec.model_copy(update={"base_model": BASE})
        self._published: list[str] = []

    async def make_adapter(self, seed: int) -> str:
        """Publish an adapter of random weights as the evaluator leaves it: with its probes, and loaded."""
        name = f"proof-{uuid4().hex[:8]}"
        folder = self._home / name
        write_adapter(folder, self._base, BASE, seed)
        (folder / "manifest.json").write_text("{}")
        self._published += [self.store.publish(folder, "adapters", name), self.store.address("probes", name)]
        trained = TRAINED.model_copy(update={"adapter": name, "base_model": BASE})
        publish_probes(await ask_probes(self.inference, trained), self.store)
        return name

    def make_empty_adapter(self) -> str:
        """Publish an adapter that changes nothing, without probes."""
        name = f"proof-{uuid4().hex[:8]}"
        self._published.append(publish_empty_adapter(self.store, self._base, name, self._home / name))
        return name

    def load(self, name: str, weights_of: str) -> None:
        """Make vLLM serve the weights of one adapter under the name of another, as a stale or wrong load does."""
        self.unload(name)
        body = {"lora_name": name, "lora_path": self.store.address("adapters", weights_of)}
        httpx.post(f"{self.url}/v1/load_lora_adapter", json=body, timeout=PATIENCE_SECONDS).raise_for_status()

    def unload(self, name: str) -> None:
        httpx.post(f"{self.url}/v1/unload_lora_adapter", json={"lora_name": name}, timeout=PATIENCE_SECONDS)

    async def serve(self, name: str) -> None:
        await self.server.serve(name, self.store.address("adapters", name), self._spec)

    async def close(self) -> None:
        for uri in self._published:
            self.unload(uri.rpartition("/")[2])
            shutil.rmtree(uri, ignore_errors=True)
        await self.inference.close()


@pytest.fixture
async def real(vllm: str, stack_settings: Settings, tmp_path: Path) -> AsyncIterator[RealFleet]:
    fleet = RealFleet(stack_settings, tmp_path)
    yield fleet
    await fleet.close()


async def test_a_real_vllm_is_proved_and_disproved_by_what_it_serves_under_an_adapters_name(real: RealFleet) -> None:
    first, second = await real.make_adapter(1), await real.make_adapter(2)
    for name in (first, second, first):
        await real.serve(name)
    assert set(real.replica.proved) == {first, second}
    real.load(first, weights_of=second)
    with pytest.raises(InvalidMessage, match="serves neither the evaluated adapter nor the base model"):
        await real.serve(first)
    real.load(first, weights_of=real.make_empty_adapter())
    with pytest.raises(InvalidMessage, match="serves the base model under the adapter's name"):
        await real.serve(first)
    assert set(real.replica.proved) == {second}


async def test_a_real_vllm_that_lost_its_adapters_is_given_them_again(real: RealFleet) -> None:
    primary, candidate = await real.make_adapter(3), await real.make_adapter(4)
    event, serving = evaluated(candidate, against=primary), ServingState(primary)
    queued = candidate_of(event, serving, event.occurred_at)
    await real.rollouts.save(queued.into_shadow(serving, 0.001, 0.001, event.occurred_at))
    await real.fleet.read_rollouts()
    for _ in range(2):
        for name in (primary, candidate):
            real.unload(name)
        await real.fleet.reconcile(real.replica)
        assert set(real.replica.proved) == {primary, candidate}
        assert await real.inference.models(real.url) >= {primary, candidate, BASE}


@asynccontextmanager
async def deciding(settings: DeployerSettings) -> AsyncIterator[tuple[Publisher, AIOKafkaConsumer]]:
    """The running service, a publisher of what it reads, and a consumer of its rollouts."""
    source = build_broker(settings, "evaluator")
    topic = topic_of(RolloutChanged).name
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=settings.kafka, auto_offset_reset="earliest")
    await asyncio.gather(source.connect(), consumer.start())
    try:
        await skip_backlog(settings, "deployer")
        async with running([build(settings)]):
            yield Publisher(source, "evaluator"), consumer
    finally:
        await consumer.stop()
        await source.stop()


async def test_the_running_deployer_lets_no_flag_name_what_is_not_proved_and_keeps_the_rest_loaded(
    real: RealFleet, stack_settings: Settings, tmp_path: Path
) -> None:
    own = {"home": tmp_path, "artifacts": stack_settings.artifacts_uri, "deployer_port": take_ports(1)[0]}
    settings = DeployerSettings(**{**stack_settings.model_dump(), **own})
    proved, lied_about = await real.make_adapter(5), await real.make_adapter(6)
    real.load(lied_about, weights_of=real.make_empty_adapter())
    stages: dict[str, RolloutChanged] = {}
    async with deciding(settings) as (publisher, rollouts), asyncio.timeout(PATIENCE_SECONDS):
        for adapter in (proved, lied_about):
            event = evaluated(adapter, f"task-{adapter}")
            spec = event.spec.model_copy(update={"base_model": BASE})
            uri = real.store.address("adapters", adapter)
            changes = {"spec": spec, "task_revision": spec.revision, "base_model": BASE, "adapter_uri": uri}
            await publisher.publish(event.model_copy(update=changes))
        async for record in rollouts:
            changed = RolloutChanged.model_validate_json(record.value or b"")
            if changed.stage is not Stage.QUEUED:
                stages[changed.candidate_adapter] = changed
            if stages.keys() >= {proved, lied_about}:
                break
        real.unload(proved)
        while proved not in await real.inference.models(real.url):
            await asyncio.sleep(0.1)
    assert (stages[proved].stage, stages[lied_about].stage) == (Stage.SHADOW, Stage.REJECTED)
    assert "serves the base model under the adapter's name" in stages[lied_about].reason
