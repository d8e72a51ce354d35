"""The dataset step of `ratchet loop` with its real reviewers, rules and noise model: each fault is stopped by its name.

Only what lies between is left out: the questions and answers do not go through the broker.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.data.rows import DataRow, read_rows
from deploy.demo.data.split import split_rows
from deploy.demo.data.task_file import DATA, apply_loop_task
from deploy.demo.reviewers import REVIEWERS, Reviewers, faulty_labels
from deploy.demo.settings import DataOptions, Fault, PlannedMistakes
from schemas.conversation import Answer, Call, Message, Role
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.inspection.gates import evaluate_gates
from services.dataset_builder.pipeline import Build, Inputs, build_dataset
from services.dataset_builder.recipe import LabelScorer
from shared.model.embedding import CachedEmbedder, SentenceEmbedder
from shared.settings import Settings

pytestmark = pytest.mark.stack
SEED = 20
NOISE = 0.3


class Console:
    """A queue of questions about rows, each put to one or two people, as the failure miner would ask them."""

    def __init__(self, rows: tuple[DataRow, ...], spec: TaskSpec) -> None:
        self._dice = random.Random(SEED)
        share = spec.failures.overlap_share
        self._overlaps = [2 if self._dice.random() < share else 1 for _ in rows]
        self._rows, self._spec = rows, spec
        self.corrections: list[CorrectionSubmitted] = []

    async def queue(self, reviewer: str, limit: int, purpose: str | None = None) -> list[dict[str, Any]]:
        answered = [[c.reviewer for c in self.corrections if c.request_id == f"r{n}"] for n in range(len(self._rows))]
        open_ones = [
            {"request_id": f"r{n}", "prediction_id": f"p{n}", "purpose": "uncalibrated", "overlap": overlap}
            for n, overlap in enumerate(self._overlaps)
            if purpose is None and len(answered[n]) < overlap and reviewer not in answered[n]
        ]
        return self._dice.sample(open_ones, min(len(open_ones), 60))

    async def correct(self, request_id: str, reviewer: str, answer: dict[str, Any]) -> bool:
        n = int(request_id[1:])
        asked = Message(role=Role.USER, content=self._rows[n].text)
        self.corrections.append(
            CorrectionSubmitted(
                task=self._spec.name, task_revision=self._spec.revision, correction_id=f"c{n}-{reviewer}",
                request_id=request_id, prediction_id=f"p{n}", purpose=Purpose.UNCALIBRATED, reviewer=reviewer,
                call=Call(messages=(Message(role=Role.SYSTEM, content=self._spec.system_prompt), asked)),
                answers=(Answer(text=self._spec.labels[0]),), label=answer["label"], overlap=self._overlaps[n],
            )
        )  # fmt: skip
        return True


@pytest.fixture(scope="module")
def embedder(stack_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> CachedEmbedder:
    """Embeds each text once: all faults are in the same texts."""
    model = SentenceEmbedder(stack_settings.models_folder / "all-MiniLM-L6-v2")
    return CachedEmbedder(model, tmp_path_factory.mktemp("texts") / "vectors.vectors", lambda done, total: None)


async def built(fault: Fault | None, folder: Path, embedder: CachedEmbedder) -> tuple[Build, TaskSpec]:
    """Return the data set of the shipped support desk after people with this fault have corrected all of it."""
    data = read_rows(DATA[TaskKind.CLASSIFICATION], "text", "label")
    rows = split_rows(data, SEED).traffic
    spec = apply_loop_task(folder, "support-desk", DataOptions(), data, len(rows), fault)
    usual = PlannedMistakes()
    wrong = NOISE if fault is Fault.NOISE else usual.wrong_share
    console = Console(rows, spec)
    mistakes = PlannedMistakes.of(fault, wrong, usual.disagree_share, SEED)
    people = Reviewers(console, spec.labels, mistakes, faulty_labels(fault, rows, SEED))
    for n, row in enumerate(rows):
        people.add_prediction(f"p{n}", row)
    while sum([await people.answer_queue(reviewer) for reviewer in REVIEWERS]):
        pass
    return build_dataset(Inputs(votes_of(console.corrections), spec), LabelScorer(embedder)), spec


@pytest.mark.parametrize("fault", [None, *Fault])
async def test_a_fault_is_stopped_by_a_gate_that_names_it_and_usual_people_pass(
    fault: Fault | None, tmp_path: Path, embedder: CachedEmbedder
) -> None:
    build, spec = await built(fault, tmp_path, embedder)
    failed = {gate.name for gate in evaluate_gates(build, spec, {}) if not gate.passed}
    if fault is None:
        assert failed == set()
        assert len(build.dataset.train) >= 250
    else:
        assert failed & fault.gates
