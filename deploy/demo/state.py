"""What the steps of a loop share while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from deploy.demo.clients import ConsoleClient, DeployerClient, GatewayClient, SchedulerClient, parameters_of
from deploy.demo.data.split import Split
from deploy.demo.errors import StepTimeout
from deploy.demo.pairs import PairLedger
from deploy.demo.report.result import LoopResult
from deploy.demo.reviewers import Reviewers
from deploy.demo.settings import LoopOptions, LoopSettings
from deploy.demo.terminal import Terminal
from schemas.tasks import TaskSpec
from shared.errors import DependencyUnavailable
from shared.storage.artifacts import ArtifactStore
from shared.tasks import end_tasks


@dataclass(frozen=True)
class Setup:
    """What is fixed before the loop starts."""

    options: LoopOptions
    settings: LoopSettings
    task: TaskSpec
    rows: Split


@dataclass(frozen=True)
class Clients:
    """The services that the loop talks to."""

    gateway: GatewayClient
    console: ConsoleClient
    scheduler: SchedulerClient
    deployer: DeployerClient

    @classmethod
    def of(cls, http: httpx.AsyncClient, settings: LoopSettings, spec: TaskSpec) -> Self:
        task = spec.name
        return cls(
            gateway=GatewayClient(http, settings.gateway_url, task, parameters_of(spec.kind)),
            console=ConsoleClient(http, settings.console_url, task),
            scheduler=SchedulerClient(http, settings.scheduler_url, task),
            deployer=DeployerClient(http, settings.deployer_url, task),
        )


@dataclass
class LoopContext:
    """A running loop: passed to every step."""

    setup: Setup
    clients: Clients
    reviewers: Reviewers
    pairs: PairLedger
    result: LoopResult
    terminal: Terminal
    background: list[asyncio.Task[None]] = field(default_factory=list, init=False)

    def start_background(self, watching: Coroutine[None, None, None]) -> None:
        """Let people answer, and pairs be counted as they appear by `watching`."""
        self.background += [asyncio.create_task(watching), asyncio.create_task(self.reviewers.work_forever())]

    async def stop_background(self) -> None:
        await end_tasks(self.background)
        self.background.clear()

    @property
    def where_to_look(self) -> str:
        log = self.setup.settings.home / "logs" / "services.log"
        return f"The reason is in the services' log: {log}. What runs: ratchet status."

    async def fetch(self, uri: str) -> Path | None:
        """Return an artifact's folder on this machine; None if this machine has no access to it."""
        settings = self.setup.settings
        try:
            store = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
            return await asyncio.to_thread(store.fetch, uri)
        except DependencyUnavailable:
            return None

    def limit(self, seconds: float) -> float:
        """Return a step's time limit on this machine."""
        return seconds * self.setup.settings.loop_time_limit_factor

    def timeout(self, reason: str, seconds: float) -> StepTimeout:
        """Make the error of a step that took longer than `limit(seconds)`."""
        return StepTimeout(
            f"{reason} in {self.limit(seconds):.0f} s",
            f"{self.where_to_look} On a slow machine: RATCHET_LOOP_TIME_LIMIT_FACTOR=3 ratchet loop …",
        )

    def check_background(self) -> None:
        """Raise the error of a background task that ended with one, so that no step waits for it in vain."""
        for task in self.background:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error
