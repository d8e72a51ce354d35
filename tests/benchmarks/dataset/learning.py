"""A build of few audits teaches what all of them do, however often production is right.

1,000 of Banking77's training questions are audited. The build holds some out and weighs the others; a model that is
trained on them is compared with one that is trained on all 1,000, alike. The aim is for 20 intents: of 77 each has 13
rows, and to leave a fifth out at random costs two points by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean

import numpy as np
from threadpoolctl import threadpool_limits

from schemas.conversation import Answer
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.pipeline import Inputs, build_dataset
from tests.benchmarks.dataset.embedded import INTENTS, Banking77
from tests.benchmarks.dataset.made import audit, call
from tests.benchmarks.table import Grid, Measured

AUDITS, SEEDS = 1_000, 5
FEW = 20
RIGHT = (0.5, 0.75, 0.9)
"""Shares of production's answers."""


@dataclass(frozen=True)
class Learned:
    """Accuracies on the test part, of training on the build, on as many rows at random and on all rows."""

    rows: int
    held_out: int
    built: float
    drawn: float
    every: float


def measure(
    data: Banking77 | None = None, audits: int = AUDITS, seeds: int = SEEDS
) -> tuple[list[Measured], list[Grid]]:
    """Return what training on the build loses, for each share of right answers."""
    data, measured, rows = data or Banking77.load(), list[Measured](), list[tuple[str, ...]]()
    for intents, right in product((FEW, INTENTS), RIGHT):
        part = data.of_intents(intents)
        with threadpool_limits(1):  # As in a build.
            runs = [_run(part, right, audits, seed) for seed in range(seeds)]
        gain = mean(run.built - run.every for run in runs)
        name = f"{intents} intents, production right in {right:.0%}: the build's rows less all"
        measured.append(Measured(name, "accuracy", gain, min_value=-0.02 if intents == FEW else None))
        rows.append((str(intents), f"{right:.0%}", *_means(runs)))
    columns = ("intents", "production right", "trained on", "held out", "accuracy", "of as many at random", "of all")
    return measured, [Grid(f"Training on builds of {audits:,} audits of Banking77", columns, rows)]


def _run(data: Banking77, right: float, audits: int, seed: int) -> Learned:
    chance = np.random.default_rng([20, seed, round(100 * right)])
    chosen = sorted(chance.choice(len(data.texts), audits, replace=False).tolist())
    labels, count = data.spec.labels, len(data.spec.labels)
    corrections = []
    for number in chosen:
        truth = int(data.true[number])
        answer = truth if chance.random() < right else (truth + int(chance.integers(1, count))) % count
        corrections.append(
            audit(number, f"p{number}", call(data.texts[number]), labels[truth], answers=(Answer(text=labels[answer]),),
                  task=data.spec.name, task_revision=data.spec.revision)
        )  # fmt: skip
    dataset = build_dataset(Inputs(votes_of(corrections), data.spec), data.scorer).dataset
    trained = [int(row.prediction_ids[0].removeprefix("p")) for row in dataset.train]
    given = np.array([labels.index(row.answer) for row in dataset.train])
    drawn = sorted(chance.choice(chosen, len(trained), replace=False).tolist())
    return Learned(
        rows=len(trained),
        held_out=len(dataset.eval),
        built=data.accuracy(given, trained, [row.weight for row in dataset.train]),
        drawn=data.accuracy(data.true[drawn], drawn),
        every=data.accuracy(data.true[chosen], chosen),
    )


def _means(runs: Sequence[Learned]) -> list[str]:
    counts = [f"{mean(run.rows for run in runs):.0f}", f"{mean(run.held_out for run in runs):.0f}"]
    accuracies = (mean(found) for found in zip(*((run.built, run.drawn, run.every) for run in runs), strict=True))
    return [*counts, *(f"{accuracy:.2%}" for accuracy in accuracies)]
