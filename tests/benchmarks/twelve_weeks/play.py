"""Plays the weeks: traffic, people and the product's own clockwork, step by step; keeps what the judge reads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from schemas.adapters import AdapterEvaluated
from schemas.cycles import CycleFinished, StepFailed
from schemas.datasets import DatasetBuilt
from schemas.labels import LabelRequested
from schemas.rollouts import RolloutChanged, Stage
from schemas.tasks import TaskChanged
from shared.settings import Settings
from tests.benchmarks.twelve_weeks.product import Product
from tests.benchmarks.twelve_weeks.stand_ins.bus import Bus
from tests.benchmarks.twelve_weeks.stand_ins.clock import Clock
from tests.benchmarks.twelve_weeks.stand_ins.engine import BASE, Engine
from tests.benchmarks.twelve_weeks.stand_ins.traffic import Traffic
from tests.benchmarks.twelve_weeks.stand_ins.trainer import Candidate, Trainer
from tests.benchmarks.twelve_weeks.world.models import Fault, accuracy, base_model, fit
from tests.benchmarks.twelve_weeks.world.people import Reviewers
from tests.benchmarks.twelve_weeks.world.stream import Corpus, make_stream
from tests.benchmarks.twelve_weeks.world.task import QUESTIONS_PER_DAY, make_task

START = datetime(2026, 6, 1, 3, tzinfo=UTC)
"""A Monday, at the hour of the weekly cycle."""
STEPS = 42
"""Of a week: each is four hours."""
GOLDEN_ROWS = 400
_ANSWERED = 1.4
"""What reviewers get through, as a multiple of the questions that are asked a day: tickets come on top."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """`weeks`: how many cycles. `faults`: from which week on the next candidate has one."""

    weeks: int
    requests: int
    faults: Mapping[int, Fault]
    seed: int


@dataclass(frozen=True)
class Promotion:
    """A promotion, and the truth about it on the stream of its week: both arms' accuracy."""

    week: int
    adapter: str
    replaced: str
    before: float
    after: float


@dataclass(frozen=True)
class WeekSeen:
    """A week by the truth: shares right on its stream. `served`: of the answers that users got.

    `first`: the first adapter that was promoted, None before it. `golden`: rows that the last adapter to serve gets
    right. `refit`: an adapter fitted on the true labels of all requests until the week's end, which nobody can have.
    """

    week: int
    served: float
    serving: str
    primary: float
    base: float
    first: float | None
    refit: float
    golden: int


@dataclass
class Played:
    """What happened. `labels`: answers that people gave; `ends`: of cycles, by outcome, in their order.

    `data_sets_stopped`: by a gate, which ends their cycle.
    """

    plan: Plan
    golden_rows: int
    weeks: list[WeekSeen] = field(default_factory=list)
    promotions: list[Promotion] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    data_sets_stopped: int = 0
    labels: int = 0
    seconds: float = 0.0


class Play:
    """One run."""

    def __init__(self, settings: Settings, corpus: Corpus, plan: Plan) -> None:
        self._corpus, self._plan = corpus, plan
        self._stream = make_stream(corpus, plan.weeks + 1, plan.requests, GOLDEN_ROWS, plan.seed)
        self._engine, self._bus = Engine(corpus, base_model(corpus)), Bus()
        self._product = Product(settings, corpus, self._engine, self._bus)
        self._spec = make_task(corpus, self._stream.golden, self._product.artifacts)
        self._people = Reviewers(corpus, self._engine, self._bus, round(_ANSWERED * QUESTIONS_PER_DAY * 7 / STEPS))
        folder = Path(settings.home) / "trained"
        self._trainer = Trainer(
            corpus, self._engine, self._bus, self._product.artifacts, folder, self._stream.golden, plan.faults,
            plan.seed,
        )  # fmt: skip
        store = self._product.artifacts
        self._traffic = Traffic(corpus, self._stream, self._spec, self._engine, self._trainer, store)
        self._primary, self._first, self._state = BASE, "", ""
        self.played = Played(plan, GOLDEN_ROWS)
        self._subscribe()

    def _subscribe(self) -> None:
        bus = self._bus
        bus.on(LabelRequested, self._people.on_question)
        bus.on(DatasetBuilt, self._trainer.on_dataset)
        bus.on(AdapterEvaluated, self._trainer.on_verdict)
        bus.on(AdapterEvaluated, self._traffic.on_verdict)
        bus.on(RolloutChanged, self._trainer.on_rollout)
        bus.on(RolloutChanged, self._on_rollout)
        bus.on(CycleFinished, self._on_finished)
        bus.on(StepFailed, self._on_failed)

    async def run(self, show: Callable[[str], None]) -> Played:
        """Play all weeks. `show` gets a line a week."""
        clock, began = Clock(START), time.perf_counter()
        with clock.installed():
            await self._product.open()
            changed = TaskChanged(task=self._spec.name, task_revision=self._spec.revision, spec=self._spec)
            await self._bus.publish(changed)
            await self._product.tick()
            for week in range(self._plan.weeks + 1):
                await self._week(week, clock)
                self.played.weeks.append(self._seen(week))
                show(f"{time.perf_counter() - began:4.0f} s  {self.played.weeks[-1]}")
            await self._product.close()
        self.played.candidates = list(self._trainer.candidates.values())
        self.played.labels, self.played.seconds = self._people.given, time.perf_counter() - began
        return self.played

    async def _week(self, week: int, clock: Clock) -> None:
        begin = START + timedelta(weeks=week)
        self._trainer.week = week
        for step in range(STEPS):
            await self._product.tick()  # The first of a week starts its cycle.
            clock.time = begin + timedelta(weeks=(step + 1) / STEPS)
            await self._traffic.send(self._product, week, step / STEPS, (step + 1) / STEPS, begin)
            await self._product.settle()
            await self._people.work()
            await self._product.settle()

    def _seen(self, week: int) -> WeekSeen:
        questions = self._stream.weeks[week].questions
        answered = sum(count for (w, _), count in self._traffic.answered.items() if w == week)
        right = sum(count for (w, _), count in self._traffic.right.items() if w == week)
        so_far = np.unique(np.concatenate([w.questions for w in self._stream.weeks[: week + 1]]))
        refit = fit(self._corpus, self._engine.models[BASE], so_far, self._corpus.labels[so_far], np.ones(len(so_far)))
        primary, golden = self._engine.models[self._primary], self._stream.golden
        return WeekSeen(
            week=week,
            served=right / max(answered, 1),
            serving=self._primary,
            primary=accuracy(primary, self._corpus, questions),
            base=accuracy(self._engine.models[BASE], self._corpus, questions),
            first=accuracy(self._engine.models[self._first], self._corpus, questions) if self._first else None,
            refit=accuracy(refit, self._corpus, questions),
            golden=round(accuracy(primary, self._corpus, golden) * len(golden)),
        )

    async def _on_rollout(self, event: RolloutChanged) -> None:
        state = f"{event.candidate_adapter} {event.stage.value} {event.reason}"
        if state != self._state:
            logger.info("%s %s", event.occurred_at, state)
            self._state = state
        if event.stage is Stage.PROMOTED and event.primary_adapter not in (None, self._primary):
            adapter, questions = str(event.primary_adapter), self._stream.weeks[self._trainer.week].questions
            before, after = (
                accuracy(self._engine.models[model], self._corpus, questions) for model in (self._primary, adapter)
            )
            promotion = Promotion(self._trainer.week, adapter, self._primary, before, after)
            self.played.promotions.append(promotion)
            self._first = self._first or adapter
        self._primary = event.primary_adapter or BASE

    async def _on_finished(self, event: CycleFinished) -> None:
        self.played.ends.append(event.outcome)

    async def _on_failed(self, event: StepFailed) -> None:
        self.played.data_sets_stopped += event.report is not None
        logger.warning("%s: %s", event.step, event.reason)
