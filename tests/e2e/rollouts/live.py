"""Gateway, shadow and deployer as processes on a real broker, PostgreSQL and Unleash, with a fast engine and people.

What a candidate is follows from its name (`engine.Kind`); its training and its offline verdict are not played here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from deploy.devstack.ports import take_ports
from schemas.adapters import PROBES
from schemas.base import utc_now
from schemas.catalog import topic_of
from schemas.labels import LabelRequested
from schemas.rollouts import RolloutChanged, Stage
from schemas.task_settings import RedactionSettings, RolloutSettings
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.deployer.clients import UnleashAdmin
from services.deployer.flags import flag_name
from shared.kafka.broker import build_broker
from shared.kafka.clients import open_consumer
from shared.kafka.publisher import Publisher
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from tests.conftest import ROOT
from tests.e2e.rollouts.engine import BASE, Kind, fast_engine, truth_of
from tests.unit.deployer.fakes import answer, evaluated
from tests.unit.shared.adapter_folders import write_adapter, write_probes
from tests.waiting import PATIENCE_SECONDS, until

SERVICES = ("gateway", "shadow", "deployer")
LABELS = ("billing", "delivery", "login", "refund")
ENDS = (Stage.PROMOTED, Stage.REJECTED, Stage.INCONCLUSIVE, Stage.ROLLED_BACK)


@dataclass(frozen=True)
class Seen:
    """A change of a rollout, and when it was read from the broker, in seconds of the clock."""

    change: RolloutChanged
    at: float


@dataclass
class Live:
    """The running services. `changes`: those of each task, as they were published."""

    settings: Settings
    home: Path
    urls: dict[str, str]
    http: httpx.AsyncClient
    flags: UnleashAdmin
    publishers: dict[str, Publisher]
    pids: dict[str, int]
    changes: defaultdict[str, list[Seen]] = field(default_factory=lambda: defaultdict(list))
    observes: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def gateway(self) -> str:
        return self.urls["gateway"]

    async def add_task(self, **rollout: Any) -> TaskSpec:
        """Publish a task of its own name, and wait until the gateway serves it."""
        spec = TaskSpec(
            name=f"live-{uuid4().hex[:8]}", kind=TaskKind.CLASSIFICATION, base_model=BASE, labels=LABELS,
            system_prompt="Name the subject of the message.",
            cron="0 0 29 2 *",  # The topic is compacted: the task stays, and must start no cycles on a shared stack.
            redaction=RedactionSettings(enabled=False), rollout=RolloutSettings(**{"control_days": 0, **rollout}),
        )  # fmt: skip
        changed = TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec)
        await self.publishers["scheduler"].publish(changed)

        async def is_served() -> bool:
            return (await self.http.get(f"{self.gateway}/v1/models/{spec.name}")).is_success

        await until(is_served, f"the gateway serves {spec.name}")
        return spec

    async def add_candidate(self, spec: TaskSpec, kind: Kind, against: str | None = None) -> str:
        """Publish an adapter and its verdict, as trainer and evaluator do; return its name. `against`: who serves."""
        name = kind.named(uuid4().hex[:8])
        store, folder = ArtifactStore(self.settings.artifacts_uri, self.home / "cache"), self.home / "made" / name
        write_probes(folder / PROBES, name, BASE)
        store.publish(folder / PROBES, PROBES, name)
        (folder / "dataset").mkdir()
        (folder / "dataset" / "train.jsonl").write_text("")
        (folder / "dataset" / "manifest.json").write_text("{}")
        uris = {
            "adapter_uri": store.publish(write_adapter(folder / "adapter", BASE), "adapters", name),
            "dataset_uri": store.publish(folder / "dataset", "datasets", name),
        }
        fixed = {"spec": spec, "task_revision": spec.revision, "base_model": BASE, "data_cutoff": utc_now(), **uris}
        await self.publishers["evaluator"].publish(evaluated(name, spec.name, against=against).model_copy(update=fixed))
        return name

    async def stage(self, candidate: str, *stages: Stage) -> Seen:
        """Wait until a candidate is in one of these stages, and return its first change to it."""

        def find() -> Seen | None:
            found = (seen for all_seen in self.changes.values() for seen in all_seen)
            return next(
                (s for s in found if s.change.candidate_adapter == candidate and s.change.stage in stages), None
            )

        return await until(find, lambda: f"{candidate} is {' or '.join(stages)}\n{self.story(candidate)}")

    async def turn(self, task: str, flag: str, *, on: bool) -> None:
        """Turn a flag by hand, as Unleash's page does."""
        features = f"{self.settings.unleash}/api/admin/projects/default/features"
        url = f"{features}/{flag_name(task, flag)}/environments/development/{'on' if on else 'off'}"
        headers = {"authorization": self.settings.unleash_admin_token}
        (await self.http.post(url, headers=headers)).raise_for_status()

    async def resume(self, task: str) -> None:
        """Say that a paused candidate may go on, as `ratchet rollout resume` does."""
        url = f"{self.urls['deployer']}/api/rollouts/{task}/resume"
        (await self.http.post(url, json={"by": "ben", "reason": "it was me"})).raise_for_status()

    async def ratchet(self, *words: str) -> str:
        """Run a command of `ratchet` as a person does, and return what it prints; nothing if it is refused."""
        ports = {f"RATCHET_{name.upper()}_PORT": url.rpartition(":")[2] for name, url in self.urls.items()}
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).parent / "ratchet", *words, env={**os.environ, **environment(self.settings), **ports},
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        printed, _ = await process.communicate()
        return "" if process.returncode else printed.decode()

    async def paused(self, task: str) -> str:
        """Wait until the history says that the task's candidate is paused, and return why."""

        async def find() -> str:
            return next((move["paused"] for move in await self.moves(task) if move["paused"]), "")

        return str(await until(find, f"a hand on a flag of {task} is in the history"))

    async def moves(self, task: str) -> list[dict[str, Any]]:
        """Return the task's history as the deployer's API has it, oldest first."""
        response = await self.http.get(f"{self.urls['deployer']}/api/rollouts/{task}/moves")
        return list(reversed(response.raise_for_status().json()["moves"]))

    def story(self, candidate: str) -> str:
        """Return what is known of a candidate, for a message."""
        told = [
            f"{s.change.stage}: {s.change.reason}"
            for seen in self.changes.values() for s in seen if s.change.candidate_adapter == candidate
        ]  # fmt: skip
        logs = [f"{name}: {(self.home / f'{name}.log').read_text()[-1_000:]}" for name in SERVICES]
        return "\n".join([*told, *logs])

    async def observe_forever(self) -> None:
        """Read the moves, and answer every question about a pair at once, as people do at the console."""
        topics = [topic_of(RolloutChanged).name, topic_of(LabelRequested).name]
        async with open_consumer(self.settings, *topics, group_id=None, auto_offset_reset="latest") as consumer:
            await asyncio.gather(*(consumer.position(partition) for partition in consumer.assignment()))
            self.observes.set()
            while True:
                for partition, records in (await consumer.getmany(timeout_ms=50)).items():
                    for record in records:
                        if partition.topic == topics[0]:
                            change = RolloutChanged.model_validate_json(record.value)
                            self.changes[change.task].append(Seen(change, time.monotonic()))
                        else:
                            await self._answer(LabelRequested.model_validate_json(record.value))

    async def _answer(self, asked: LabelRequested) -> None:
        if asked.ticket_id is not None:
            truth = truth_of(str(asked.call.messages[-1].content))
            await self.publishers["console"].publish(answer(asked, label=truth))


def environment(settings: Settings) -> dict[str, str]:
    """Return the settings as variables of a process, whose home has no stack.env."""
    values = settings.model_dump(exclude_defaults=True, mode="json")
    values["home"] = str(settings.home)
    return {f"RATCHET_{name.upper()}": str(value) for name, value in values.items()}


@asynccontextmanager
async def live(settings: Settings, home: Path) -> AsyncIterator[Live]:
    """Start the services on a running stack, with state of their own in `home`, for the length of a `with`."""
    ports = dict(zip(SERVICES, take_ports(len(SERVICES)), strict=True))
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    with contextlib.ExitStack() as processes:
        vllm = processes.enter_context(fast_engine())
        own = settings.model_copy(update={"home": home, "vllm": vllm, "lake": "", "artifacts": ""})
        env = {**os.environ, **environment(own), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pids = {}
        for name in SERVICES:
            process = _start(name, {**env, f"RATCHET_{name.upper()}_PORT": str(ports[name])}, home)
            processes.callback(_stop, process)
            pids[name] = process.pid
        broker = build_broker(own, "evaluator")
        await broker.connect()
        flags = UnleashAdmin(own.unleash, own.unleash_admin_token)
        async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
            publishers = {name: Publisher(broker, name) for name in ("evaluator", "scheduler", "console")}
            found = Live(own, home, urls, http, flags, publishers, pids)
            observing = asyncio.create_task(found.observe_forever())
            try:
                await found.observes.wait()
                await until(lambda: _all_answer(http, urls), lambda: f"gateway and deployer answer\n{found.story('')}")
                yield found
            finally:
                observing.cancel()
                await asyncio.gather(observing, return_exceptions=True)
                await flags.close()
                await broker.stop()


async def _all_answer(http: httpx.AsyncClient, urls: dict[str, str]) -> bool:
    try:
        await http.get(f"{urls['gateway']}/readyz")  # It is ready once it has a task.
        rollouts = await http.get(f"{urls['deployer']}/api/rollouts")
    except httpx.TransportError:
        return False
    return rollouts.is_success


def _start(name: str, env: dict[str, str], home: Path) -> subprocess.Popen[bytes]:
    with (home / f"{name}.log").open("ab") as log:
        argv = [sys.executable, "-m", f"services.{name}.main"]
        return subprocess.Popen(argv, env=env, cwd=home, stdout=log, stderr=log)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
