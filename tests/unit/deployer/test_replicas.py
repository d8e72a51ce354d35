"""Each replica is given the adapters that the rollouts need, and proves them by inference; engines have lied in each of
these ways."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.rollouts import Stage
from services.deployer.clients import ArtifactMissing, Strategy, VllmAdapterServer
from services.deployer.replicas import OUT_OF_SERVICE_SECONDS, PROVE_SECONDS, AdapterReplicas, Replica
from services.deployer.rollout import ServingState, candidate_of
from services.deployer.settings import DeployerSettings
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.model.inference import InferenceClient
from shared.storage.artifacts import ArtifactStore
from tests.unit.deployer.fakes import MemoryAdmin, MemoryRollouts, evaluated, spec
from tests.unit.shared.adapter_folders import first_tokens, write_adapter, write_probes
from tests.waiting import PATIENCE_SECONDS

TASK = "support-desk"


class Vllm:
    """One vLLM server. `answers_as`: the model that answers under another's name."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.answers_as: dict[str, str] = {}
        self.is_away = self.loads_nothing = self.refuses_to_load = self.finds_adapters = False
        self.refuses_all = 0
        self.paths: list[str] = []
        self.asked: list[str] = []

    def restart(self) -> None:
        self.loaded.clear()

    def handle(self, request: httpx.Request) -> httpx.Response:
        if self.is_away:
            raise httpx.ConnectError("refused")
        self.paths.append(request.url.path)
        if self.refuses_all:
            return httpx.Response(self.refuses_all, json={"error": "no"})
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": name} for name in ("base", *sorted(self.loaded))]})
        body = json.loads(request.content)
        if request.url.path == "/v1/unload_lora_adapter":
            self.loaded.remove(body["lora_name"])
            return httpx.Response(200, text="Success")
        if request.url.path == "/v1/load_lora_adapter":
            if self.refuses_to_load:
                said = "Call to add_lora method failed: Worker failed with error 'rank 32 is over max_lora_rank 16'"
                return httpx.Response(500, json={"error": {"message": said, "code": 500}})
            if not self.loads_nothing:
                self.loaded.add(body["lora_name"])
            return httpx.Response(200, text="Success")
        return self._complete(body)

    def _complete(self, body: dict[str, Any]) -> httpx.Response:
        model = body["model"]
        self.asked.append(model)
        if self.finds_adapters and model != "base":
            self.loaded.add(model)
        if model != "base" and model not in self.loaded and model not in self.answers_as:
            return httpx.Response(404, json={"error": {"message": f"The model `{model}` does not exist."}})
        listed = [{"token": t, "logprob": p} for t, p in first_tokens(self.answers_as.get(model, model)).items()]
        logprobs = {"content": [{**listed[0], "top_logprobs": listed}]}
        choice = {"message": {"content": "x"}, "finish_reason": "length", "logprobs": logprobs}
        return httpx.Response(200, json={"choices": [choice]})


class Fleet:
    """Two replicas, rollouts and flags in memory, and an artifact store in a folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.engines = {"a": Vllm(), "b": Vllm()}
        self.store = ArtifactStore(str(folder / "artifacts"), folder / "cache")
        self.rollouts, self.admin = MemoryRollouts(), MemoryAdmin()
        self.now = 1000.0
        inference = InferenceClient(["http://a", "http://b"], 1.0)
        inference._client = httpx.AsyncClient(transport=httpx.MockTransport(self.handle))
        found = DeployerSettings(vllm="http://a,http://b", **settings)
        self.fleet = AdapterReplicas(inference, self.store, self.rollouts, self.admin, found, lambda: self.now)
        self.server = VllmAdapterServer(self.fleet, self.store, 16)
        self.a, self.b = self.fleet.replicas
        self._folder = folder

    def handle(self, request: httpx.Request) -> httpx.Response:
        return self.engines[request.url.host].handle(request)

    def publish(self, *adapters: str, like: str = "") -> None:
        """Publish adapters with their probes. `like`: the model whose answers the probes have."""
        for name in adapters:
            write_adapter(self._folder / "adapters" / name, "base")
            write_probes(self._folder / "probes" / name, name, "base", like)
            for kind in ("adapters", "probes"):
                self.store.publish(self._folder / kind / name, kind, name)

    async def serve(self, adapter: str = "a1") -> None:
        await self.server.serve(adapter, self.store.address("adapters", adapter), spec())

    async def roll_out(self, candidate: str, primary: str | None, previous: str | None, stage: Stage) -> None:
        event = evaluated(candidate, TASK, against=primary)
        serving = ServingState(primary, previous)
        queued = candidate_of(event, serving, event.occurred_at)
        rollout = queued.into_shadow(serving, 0.001, 0.001, event.occurred_at)
        self.rollouts.rollouts.clear()
        await self.rollouts.save(rollout)
        await self.rollouts.save(rollout.with_stage(stage, "", rollout.evidence, event.occurred_at))
        for saved in list(self.rollouts.rollouts.values()):
            await self.rollouts.settle(saved)
        await self.fleet.read_rollouts()

    async def reconcile(self) -> None:
        for replica in self.fleet.replicas:
            await self.fleet.reconcile(replica)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    made = Fleet(tmp_path)
    made.publish("a1", "a2", "a3")
    return made


async def test_every_replica_loads_and_proves_an_adapter_before_it_counts_as_served(fleet: Fleet) -> None:
    fleet.engines["b"].finds_adapters = True
    await fleet.serve()
    assert [engine.loaded for engine in fleet.engines.values()] == [{"a1"}, {"a1"}]
    assert "/v1/load_lora_adapter" not in fleet.engines["b"].paths, "it has a resolver"
    assert set(fleet.a.proved) == set(fleet.b.proved) == {"a1"}
    assert fleet.engines["a"].asked.count("base") == fleet.engines["b"].asked.count("base") == 5


def serves_the_base(engine: Vllm) -> None:
    engine.answers_as["a1"] = "base"


def serves_an_older_cache(engine: Vllm) -> None:
    engine.answers_as["a1"] = "a1 as it was before its name was loaded again"


def says_success_for_a_missing_path(engine: Vllm) -> None:
    engine.loads_nothing = True


def refuses_the_rank(engine: Vllm) -> None:
    engine.refuses_to_load = True


def answers_the_base_with_the_adapter(engine: Vllm) -> None:
    engine.answers_as["base"] = "a1"


FAULTS: list[tuple[Callable[[Vllm], None], str]] = [
    (serves_the_base, "it serves the base model under the adapter's name"),
    (serves_an_older_cache, "it serves neither the evaluated adapter nor the base model"),
    (says_success_for_a_missing_path, "does not exist"),
    (refuses_the_rank, "max_lora_rank"),
    (answers_the_base_with_the_adapter, "its base model is not the one that was evaluated"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
async def test_an_adapter_that_no_replica_proves_is_refused(
    fleet: Fleet, fault: Callable[[Vllm], None], reason: str
) -> None:
    for engine in fleet.engines.values():
        fault(engine)
    with pytest.raises(InvalidMessage, match=reason):
        await fleet.serve()


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_server_that_refuses_whoever_asks_says_nothing_about_an_adapter(fleet: Fleet, status: int) -> None:
    """A key that was rotated, or a proxy without its server: the candidate would be rejected for good."""
    for engine in fleet.engines.values():
        engine.refuses_all = status
    with pytest.raises(DependencyUnavailable, match=str(status)):
        await fleet.serve()
    for engine in fleet.engines.values():
        engine.refuses_all = 0
    await fleet.serve()


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
async def test_a_replica_that_does_not_prove_what_another_proves_is_waited_for(
    fleet: Fleet, fault: Callable[[Vllm], None], reason: str
) -> None:
    fault(fleet.engines["b"])
    with pytest.raises(DependencyUnavailable, match=f"not proved on every replica yet: .*{reason}"):
        await fleet.serve()
    assert (set(fleet.a.proved), set(fleet.b.proved)) == ({"a1"}, set())
    fleet.engines["b"] = Vllm()
    await fleet.serve()


async def test_a_replica_that_is_away_is_waited_for_until_it_is_out_of_service(fleet: Fleet) -> None:
    fleet.engines["b"].is_away = True
    await fleet.reconcile()
    with pytest.raises(DependencyUnavailable, match="does not answer"):
        await fleet.serve()
    fleet.now += OUT_OF_SERVICE_SECONDS
    await fleet.serve()
    fleet.engines["a"].is_away = True
    await fleet.reconcile()
    fleet.now += OUT_OF_SERVICE_SECONDS
    with pytest.raises(DependencyUnavailable, match="no vLLM replica answers"):
        await fleet.serve()


async def test_an_adapter_without_probes_or_with_damaged_ones_is_not_served(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "probes" / "a1" / "probes.json").write_text("{")
    with pytest.raises(InvalidMessage, match="cannot be read"):
        await fleet.serve("a1")
    (tmp_path / "artifacts" / "probes" / "a2" / "manifest.json").unlink()
    with pytest.raises(ArtifactMissing, match="no probes of a2"):
        await fleet.serve("a2")


async def test_another_service_that_loads_the_same_adapter_first_is_no_trouble(fleet: Fleet) -> None:
    engine = fleet.engines["a"]
    listed = iter([{"data": []}])

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models" and (first := next(listed, None)):
            return httpx.Response(200, json=first)
        if request.url.path == "/v1/load_lora_adapter":
            engine.loaded.add("a1")
            return httpx.Response(400, json={"error": {"message": "has already been loaded"}})
        return engine.handle(request)

    inference = InferenceClient(["http://a"])
    inference._client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    await inference.serve_adapter("a1", "/artifacts/adapters/a1")


async def test_primary_previous_and_candidate_are_loaded_and_proved_and_after_a_rejection_the_first_two(
    fleet: Fleet,
) -> None:
    await fleet.roll_out("a3", "a2", "a1", Stage.CANARY)
    await fleet.reconcile()
    assert list(fleet.a.proved) == ["a2", "a3", "a1"], "those that serve users first"
    assert fleet.engines["b"].loaded == set(fleet.b.proved) == {"a1", "a2", "a3"}
    for engine in fleet.engines.values():
        engine.restart()
    await fleet.roll_out("a3", "a2", "a1", Stage.REJECTED)
    await fleet.reconcile()
    assert fleet.engines["b"].loaded == set(fleet.b.proved) == {"a1", "a2"}


@pytest.mark.parametrize("seen_away", [True, False])
async def test_a_replica_that_restarted_is_given_its_adapters_again_at_the_next_look(
    fleet: Fleet, seen_away: bool
) -> None:
    await fleet.roll_out("a3", "a2", "a1", Stage.CANARY)
    await fleet.reconcile()
    engine = fleet.engines["b"]
    if seen_away:  # And its resolver finds what traffic asks for, before the deployer looks.
        engine.is_away = True
        await fleet.reconcile()
        assert not fleet.b.proved
        engine.is_away, engine.loaded = False, {"a1", "a2", "a3"}
    else:
        engine.loaded = {"a1", "a3"}
    engine.asked.clear()
    await fleet.reconcile()
    assert engine.loaded == set(fleet.b.proved) == {"a1", "a2", "a3"}
    assert set(engine.asked) == {"base", "a1", "a2", "a3"}, "all are proved again"


async def test_a_proof_is_repeated_when_it_is_old_and_not_before(fleet: Fleet) -> None:
    await fleet.roll_out("a1", None, None, Stage.SHADOW)
    await fleet.reconcile()
    for engine in fleet.engines.values():
        engine.answers_as["a1"] = "base"
    fleet.now += PROVE_SECONDS - 1.0
    await fleet.reconcile()
    assert set(fleet.a.proved) == {"a1"}
    fleet.now += 1.0
    await fleet.reconcile()
    assert not fleet.a.proved


async def test_the_trouble_of_one_adapter_and_of_one_replica_stops_no_other_and_is_logged_once(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fleet.engines["b"].answers_as["a2"] = "base"
    await fleet.roll_out("a3", "a2", "a1", Stage.CANARY)
    for _ in range(5):
        await fleet.reconcile()
        fleet.now += 30.0
    assert (set(fleet.a.proved), set(fleet.b.proved)) == ({"a1", "a2", "a3"}, {"a1", "a3"})
    assert len([r for r in caplog.records if "under the adapter's name" in r.message]) == 1
    told = fleet.fleet.trouble_of("a2")
    assert told.startswith("http://b: ") and "under the adapter's name" in told
    assert fleet.fleet.trouble_of("a1") == ""
    del fleet.engines["b"].answers_as["a2"]
    fleet.now += 60.0
    await fleet.reconcile()
    assert set(fleet.b.proved) == {"a1", "a2", "a3"}
    assert fleet.fleet.trouble_of("a2") == ""
    assert "replica http://b: a2: well again" in caplog.text


async def test_a_failed_proof_is_repeated_after_growing_pauses(fleet: Fleet) -> None:
    engine = fleet.engines["a"]
    engine.answers_as["a1"] = "base"
    await fleet.roll_out("a1", None, None, Stage.SHADOW)
    tries = []
    for second in range(200):
        engine.asked.clear()
        await fleet.fleet.reconcile(fleet.a)
        tries += [second] * bool(engine.asked)
        fleet.now += 1.0
    assert tries == [0, 2, 6, 14, 30, 62, 122, 182]


async def test_a_replica_that_hangs_delays_no_other(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    await fleet.roll_out("a1", None, None, Stage.SHADOW)
    reconcile = fleet.fleet.reconcile

    async def hang(replica: Replica) -> None:
        await (asyncio.Event().wait() if replica is fleet.a else reconcile(replica))

    monkeypatch.setattr(fleet.fleet, "reconcile", hang)
    background = asyncio.create_task(fleet.fleet.reconcile_forever())
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not fleet.b.proved:
            await asyncio.sleep(0.01)
    background.cancel()


async def test_an_ended_candidate_is_unloaded_after_a_grace_unless_a_flag_names_it(fleet: Fleet) -> None:
    for engine in fleet.engines.values():
        engine.loaded = {"a1", "a3", "of-somebody-else"}
    await fleet.roll_out("a3", "a1", None, Stage.REJECTED)
    await fleet.reconcile()
    fleet.now += 24 * 3600 - 1
    await fleet.reconcile()
    assert "/v1/unload_lora_adapter" not in fleet.engines["a"].paths
    flag = f"ratchet.{TASK}.primary"
    await fleet.admin.ensure(flag, "", Strategy(variant="primary", payload={"adapter": "a3", "previous": None}))
    fleet.now += 2
    await fleet.reconcile()
    assert "a3" in fleet.engines["a"].loaded, "a person's flag names it"
    await fleet.admin.set_strategy(flag, Strategy(variant="primary", payload={"adapter": "a1", "previous": None}))
    await fleet.reconcile()
    assert [e.loaded for e in fleet.engines.values()] == [{"a1", "of-somebody-else"}] * 2


async def test_while_no_flag_can_be_read_nothing_is_unloaded(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(flag: str) -> None:
        raise DependencyUnavailable("Unleash is away")

    monkeypatch.setattr(fleet.admin, "read", away)
    fleet.engines["a"].loaded = {"a3"}
    await fleet.roll_out("a3", None, None, Stage.REJECTED)
    for _ in range(3):
        await fleet.reconcile()
        fleet.now += 25 * 3600
    assert fleet.engines["a"].loaded == {"a3"}


async def test_no_replica_is_asked_for_files_that_are_no_plain_adapter_of_the_base(
    fleet: Fleet, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "artifacts" / "adapters" / "a2")
    write_adapter(tmp_path / "artifacts" / "adapters" / "a2", "base", r=64)
    await fleet.roll_out("a3", "a2", "a1", Stage.CANARY)
    await fleet.reconcile()
    assert fleet.engines["a"].loaded == set(fleet.a.proved) == {"a1", "a3"}
    assert "rank 64 is over the engine's limit" in fleet.a.troubles["a2"]
