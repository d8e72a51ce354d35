"""The processes of a run: what decides about rollouts, and what that stands on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import httpx

from deploy.devstack.catalog import part_named
from deploy.devstack.config import HOST, StackConfig
from deploy.devstack.part import tail
from deploy.devstack.ports import take_ports
from schemas.tasks import TaskSpec
from shared.storage.artifacts import ArtifactStore
from tests.chaos.rollouts.cut_model import cut_model
from tests.chaos.rollouts.tasks import BASE_MODEL, VLLM_BASE, VLLM_MARK, spec_of, write_task
from tests.chaos.system import StartError, System, python

SERVICES = ("scheduler", "gateway", "shadow", "deployer")
ENGINES, VLLM = ("engine-1", "engine-2"), "vllm"
_VLLM_SECONDS = 600.0
"""Within which vLLM is up; on quiet cores it takes half a minute."""
_VLLM_OPTIONS = ("--max-loras=6", "--max-cpu-loras=32")
"""Every task has two adapters of its own in a batch, where a fleet of one task has two in all."""


class RolloutSystem(System):
    """Two engines, one gateway, shadow, deployer and scheduler; `on_vllm` of the tasks are served by a real vLLM."""

    gateways: Sequence[str] = ("gateway",)

    def __init__(self, home: Path, tasks: int, on_vllm: int = 0) -> None:
        super().__init__(home, disks=False, services=SERVICES)
        marks = [VLLM_MARK if number < on_vllm else "-" for number in range(tasks)]
        self.tasks = [f"rollout-{self.token}{mark}{number}" for number, mark in enumerate(marks)]
        self.specs: dict[str, TaskSpec] = {
            task: spec_of(task, VLLM_BASE if VLLM_MARK in task else BASE_MODEL) for task in self.tasks
        }
        self.gateway_urls = self.gateway_urls[:1]
        *ports, deployer = take_ports(len(ENGINES) + 1)
        self.engine_urls = tuple(f"http://{HOST}:{port}" for port in ports)
        self.deployer_url = f"http://{HOST}:{deployer}"
        overrides = {
            "VLLM": ",".join(self.engine_urls), "ARTIFACTS": str(home / "artifacts"),
            "DEPLOYER_PORT": str(deployer), "DEPLOYER_TICK_SECONDS": "1",
        }  # fmt: skip
        self.env |= {f"RATCHET_{name}": value for name, value in overrides.items()}
        self.config = StackConfig.load(home, self.env)
        self.vllm_url = f"http://{self.config.address('vllm')}" if on_vllm else None

    @property
    def services(self) -> list[str]:
        return list(SERVICES)

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(str(self.home / "artifacts"), self.home / "cache")

    async def wait_for_vllm(self, say: Callable[[str], None]) -> None:
        """Wait until vLLM is up; the tasks that it does not serve begin without it. Raises StartError."""
        deadline = time.monotonic() + _VLLM_SECONDS
        while self.vllm_url is not None:
            if await self.vllm_is_up():
                say("vLLM is up")
                return
            if time.monotonic() > deadline:
                raise StartError(f"vLLM is not ready\n{tail(self.home / 'logs' / f'{VLLM}.log')}")
            await asyncio.sleep(1.0)

    async def vllm_is_up(self) -> bool:
        """Return True if there is a vLLM, and it answers."""
        if self.vllm_url is None:
            return False
        async with httpx.AsyncClient(timeout=5.0) as http:
            with contextlib.suppress(httpx.HTTPError):
                return (await http.get(f"{self.vllm_url}/health")).is_success
        return False

    def _write_tasks(self) -> None:
        for spec in self.specs.values():
            write_task(self.home / "tasks", spec)

    def _start_models(self) -> None:
        assert self.programs is not None
        behind = () if self.vllm_url is None else (self.vllm_url,)
        if behind:
            launch = part_named(VLLM).launch(self.config)
            models = self.home / "cut-models"
            cut_model(self.config.models / VLLM_BASE, models / VLLM_BASE)
            self.programs.start(VLLM, replace(launch, argv=(*launch.argv, *_VLLM_OPTIONS), cwd=str(models)))
        for name, url in zip(ENGINES, self.engine_urls, strict=True):
            self.programs.start(name, python("tests.chaos.rollouts.engine", url.rpartition(":")[2], *behind))
