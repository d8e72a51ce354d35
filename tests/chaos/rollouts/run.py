"""One run: candidates come and are compared while parts are killed; then what was decided is checked."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg

from schemas.adapters import EvaluationRequested
from schemas.base import Event
from schemas.labels import LabelRequested
from schemas.rollouts import RolloutChanged, ShadowCompared
from tests.chaos.rollouts.checks.checker import check
from tests.chaos.rollouts.checks.history import History
from tests.chaos.rollouts.cycles import Cycles
from tests.chaos.rollouts.kills import KINDS, Kills
from tests.chaos.rollouts.people import People
from tests.chaos.rollouts.record import read_history
from tests.chaos.rollouts.report import Outcome, summarise
from tests.chaos.rollouts.system import VLLM, RolloutSystem
from tests.chaos.rollouts.tasks import VLLM_MARK, kinds
from tests.chaos.rollouts.topics import Handler, PatientPublisher, follow
from tests.chaos.rollouts.traffic import Traffic
from tests.chaos.rollouts.watch import Watch

_TELL_SECONDS = 10.0
_QUIET_SECONDS = 10.0
"""After the last rollout's end, until its flags are read for the last time, and after the last pair, until the deployer
has read it."""


@dataclass(frozen=True)
class Options:
    """`rollouts`: at least so many, shared out among the tasks. `seconds`: within which the kills are played.

    `per_second`: requests of each task. `on_vllm`: so many of the tasks, with `vllm_per_second` requests of each.
    """

    rollouts: int = 100
    tasks: int = 10
    kills: int = 20
    seconds: float = 900.0
    per_second: float = 6.0
    patience_seconds: float = 3_600.0
    seed: int = 4
    on_vllm: int = 0
    vllm_per_second: float = 3.0


SHORT = Options(rollouts=5, tasks=5, kills=1, seconds=15.0, per_second=8.0, patience_seconds=240.0)
Show = Callable[[str], None]


async def run_rollouts(home: Path, options: Options, show: Show, *, keep: bool = False) -> Outcome:
    """Run once in a new folder, which is deleted if the run passes. Raises the errors of the harness itself."""
    system = RolloutSystem(home, options.tasks, options.on_vllm)
    run = _Run(system, options, show)
    try:
        await run.run()
        return run.outcome
    finally:
        await asyncio.shield(system.close())
        await asyncio.to_thread(system.remove, everything=not keep and run.finished and run.outcome.passed)


class _Run:
    """The state of one run."""

    def __init__(self, system: RolloutSystem, options: Options, show: Show) -> None:
        self.system, self.options, self._show = system, options, show
        engines = f"{options.tasks - options.on_vllm} tasks on stand-ins that answer at once"
        vllm = f"{options.on_vllm} on vLLM" if options.on_vllm else "none on vLLM"
        self.outcome = Outcome(
            system={"broker": system.broker_kind, "engines": f"{engines}, {vllm}", "seed": options.seed}
        )
        self.finished = False

    async def run(self) -> None:
        await self.system.start(self._show)
        publisher = PatientPublisher(self.system.settings, ("evaluator", "console"))
        await publisher.start()
        cycles = Cycles(self.system, publisher, self.options.rollouts)
        people = People(cycles.kinds, publisher)
        options = self.options
        rates = {t: options.vllm_per_second if VLLM_MARK in t else options.per_second for t in self.system.tasks}
        traffic = Traffic(self.system.gateway_urls[0], rates, options.seed)
        watch, began = Watch(self.system), time.monotonic()
        kills = Kills(self.system, options.kills, options.seconds, options.seed)
        handlers: Mapping[type[Event], Handler] = {
            RolloutChanged: cycles.on_changed, EvaluationRequested: cycles.on_requested,
            ShadowCompared: people.on_compared, LabelRequested: people.on_requested,
        }  # fmt: skip
        try:
            async with _beside(
                traffic.run(), watch.run(), follow(self.system.settings, handlers), self._tell(cycles, kills),
                self.system.wait_for_vllm(self._show),
            ):  # fmt: skip
                await self._rollouts_and_kills(cycles, kills)
                self.outcome.seconds = round(time.monotonic() - began, 1)
                await asyncio.sleep(_QUIET_SECONDS)
        finally:
            await people.close()
            await publisher.close()
        self.outcome.traffic, self.outcome.kills = dict(traffic.answers.most_common()), dict(kills.played)
        history = await self._history(cycles, watch)
        await self._check(history, cycles)
        self.finished = True

    async def _rollouts_and_kills(self, cycles: Cycles, kills: Kills) -> None:
        """Play until as many rollouts have ended and as many kills were played as were asked for, or patience ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.patience_seconds), asyncio.TaskGroup() as group:
                group.create_task(self._kill(cycles, kills))
                for number, task in enumerate(self.system.tasks):
                    group.create_task(cycles.play(task, kinds(self.options.seed, number)))

    async def _kill(self, cycles: Cycles, kills: Kills) -> None:
        await cycles.wait_for_first()
        await kills.run()

    async def _tell(self, cycles: Cycles, kills: Kills) -> None:
        began = time.monotonic()
        while True:
            assert self.system.programs is not None
            self.system.programs.check()
            stages = Counter(stage.value for stage in cycles.stages.values())
            played = ", ".join(f"{kind} {kills.played[kind]}" for kind in (*KINDS, VLLM) if kills.played[kind])
            ended, wanted = cycles.ended, self.options.rollouts
            left = f", {(time.monotonic() - began) / ended * (wanted - ended) / 60:.0f} min left" if ended else ""
            self._show(f"{ended} of {wanted} rollouts ended{left}; {dict(stages)}; killed: {played or 'none'}")
            await asyncio.sleep(_TELL_SECONDS)

    async def _history(self, cycles: Cycles, watch: Watch) -> History:
        self._show("reading what was decided")
        await self.system.wait_until_recovered()
        assert self.system.programs is not None
        await self.system.programs.by_name["shadow"].stop()  # Where patience ended first, it has calls left to replay.
        await asyncio.sleep(_QUIET_SECONDS)
        expected = {candidate: candidate.rpartition("-")[0] for candidate in cycles.kinds}
        async with asyncio.timeout(120):
            while True:
                with contextlib.suppress(httpx.HTTPError, psycopg.Error):
                    return await asyncio.to_thread(read_history, self.system, expected, watch.samples)
                await asyncio.sleep(1.0)

    async def _check(self, history: History, cycles: Cycles) -> None:
        self._show("checking")
        found = await asyncio.to_thread(check, history)
        programs = self.system.programs
        assert programs is not None
        self.outcome.restarts = {p.name: p.starts - 1 for p in programs.by_name.values() if p.starts > 1}
        self.outcome.crashes = {
            p.name: {str(code): n for code, n in p.crashes.items()} for p in programs.by_name.values() if p.crashes
        }
        summarise(self.outcome, history, cycles.kinds)
        self.outcome.verdict = [f"{name}: {problem}" for name, problems in found.items() for problem in problems]
        self.outcome.verdict += self._too_little()

    def _too_little(self) -> list[str]:
        """What was not tested, although it had to be."""
        kills = [
            f"only {self.outcome.kills.get(kind, 0)} of {self.options.kills} kills of {kind} were played"
            for kind in KINDS if self.outcome.kills.get(kind, 0) < self.options.kills
        ]  # fmt: skip
        if self.outcome.ended < self.options.rollouts:
            kills.append(f"only {self.outcome.ended} of {self.options.rollouts} rollouts ended")
        return kills


@contextlib.asynccontextmanager
async def _beside(*background: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these beside the body, and stop them with it. The error of one of them ends the body."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in background]
        yield
        for task in tasks:
            task.cancel()
