"""The stand-in trainer: fits an adapter on the data set that the builder built, or plants a bad one in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from schemas.adapters import AdapterEvaluated, AdapterTrained
from schemas.datasets import DatasetBuilt, Example
from schemas.rollouts import RolloutChanged, Stage
from services.trainer.domain import TrainingOutcome, job_name
from services.trainer.job import build_manifest, read_examples, trained_event
from shared.files import write_atomically
from shared.storage.artifacts import MANIFEST, ArtifactStore
from tests.benchmarks.twelve_weeks.stand_ins.bus import Bus
from tests.benchmarks.twelve_weeks.stand_ins.engine import BASE, Engine
from tests.benchmarks.twelve_weeks.world.models import Fault, HeldOut, fit, fit_bad
from tests.benchmarks.twelve_weeks.world.stream import Corpus, Ints

_ENDS = {Stage.REJECTED, Stage.INCONCLUSIVE}


@dataclass(frozen=True)
class Candidate:
    """An adapter: of which week's cycle, with which fault, and how its rollout ended. `week` is the cycle's."""

    adapter: str
    week: int
    rows: int
    fault: Fault | None = None
    end: Stage | None = None
    ended: int = 0
    reason: str = ""

    @property
    def was_replaced(self) -> bool:
        """True if a newer one took its place before it was compared: no evidence stopped it."""
        return self.end is Stage.REJECTED and self.reason.startswith("replaced in the queue")


class Trainer:
    """`plan`: from which week on the next candidate has a fault. One that was replaced in the queue comes again."""

    def __init__(
        self, corpus: Corpus, engine: Engine, bus: Bus, artifacts: ArtifactStore, folder: Path, golden: Ints,
        plan: Mapping[int, Fault], seed: int,
    ) -> None:  # fmt: skip
        self._corpus, self._engine, self._bus, self._artifacts = corpus, engine, bus, artifacts
        self._folder, self._golden, self._seed = folder, golden, seed
        self._due = dict(sorted(plan.items()))
        self.week, self.primary = 0, BASE
        self.candidates: dict[str, Candidate] = {}

    async def on_dataset(self, event: DatasetBuilt) -> None:
        """Fit an adapter and publish it as the trainer does."""
        folder = self._artifacts.fetch(event.uri)
        train = read_examples(folder / "train.jsonl")
        fault = self._next_fault()
        model = self._fitted(train, read_examples(folder / "eval.jsonl"), fault)
        adapter = self._folder / (name := job_name(event))
        write_atomically(adapter / "model.npy", model.tobytes())
        outcome = TrainingOutcome(steps=1, losses=(0.0,), train_loss=0.0)
        manifest = build_manifest(event, adapter, outcome)
        write_atomically(adapter / MANIFEST, manifest.model_dump_json(indent=2).encode())
        (adapter / "model.npy").unlink()  # The engine has it; on disk it is only what the adapter is named after.
        uri = self._artifacts.publish(adapter, "adapters", manifest.adapter)
        self._engine.models[manifest.adapter] = model
        self.candidates[manifest.adapter] = Candidate(manifest.adapter, self.week, len(train), fault)
        trained: AdapterTrained = trained_event(event, name, manifest, uri)
        await self._bus.publish(trained)

    async def on_verdict(self, event: AdapterEvaluated) -> None:
        if event.verdict == "failed":
            stopped = "; ".join(f"{gate.name}: {gate.detail}" for gate in event.gates if not gate.passed)
            self._end(event.adapter, Stage.REJECTED, f"offline: {stopped}")

    async def on_rollout(self, event: RolloutChanged) -> None:
        self.primary = event.primary_adapter or BASE
        if event.stage in _ENDS or event.stage is Stage.PROMOTED:
            self._end(event.candidate_adapter, event.stage, event.reason)

    def _end(self, adapter: str, end: Stage, reason: str) -> None:
        """Note an end, the first one: after a promotion there are others."""
        candidate = self.candidates[adapter]
        if candidate.end is None:
            candidate = replace(candidate, end=end, ended=self.week, reason=reason)
            self.candidates[adapter] = candidate
            if candidate.fault is not None and candidate.was_replaced:
                self._due = {self.week: candidate.fault, **self._due}

    def _next_fault(self) -> Fault | None:
        due = next((week for week in self._due if week <= self.week), None)
        return None if due is None else self._due.pop(due)

    def _fitted(self, train: list[Example], held_out: list[Example], fault: Fault | None) -> np.ndarray:
        rows = np.array([self._engine.question(example.messages[-2].text) for example in train])
        labels = np.array([self._corpus.names.index(example.answer) for example in train])
        weights = [example.weight for example in train]
        base = self._engine.models[BASE]
        if fault is None:
            return fit(self._corpus, base, rows, labels, weights)
        asked = np.array([self._engine.question(example.messages[-2].text) for example in held_out])
        known = HeldOut(asked, self._golden, self._engine.models[self.primary])
        return fit_bad(self._corpus, base, rows, labels, weights, fault, known, self._seed)
