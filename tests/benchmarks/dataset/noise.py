"""Planted label noise on Banking77: what is found, and what training on the repaired set is worth.

Wrong labels are uniform, or one of the three most similar intents. The rules and the model are those of a build. People
are asked about every label that is held back and answer rightly in 95 %. Models are
tested on Banking77's own test part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from schemas.conversation import Answer
from services.dataset_builder.building.rows import Row
from services.dataset_builder.checks.label_noise import find_noise
from tests.benchmarks.dataset.embedded import Banking77, Labels
from tests.benchmarks.dataset.made import START, call
from tests.benchmarks.table import Grid, Measured

KINDS = ("uniform", "confusable")
RATES = (0.05, 0.1, 0.15, 0.2, 0.3)
BAR_RATE = 0.15
SEEDS = 3
REVIEWERS_RIGHT = 0.95
_CONFUSABLE = 3


@dataclass(frozen=True)
class Found:
    """One run. `share`: of all rows that are held back. Accuracies are on the test part: of a model that was trained on
    the labels as they are, on those that people repaired, and on the true ones.
    """

    kind: str
    rate: float
    seed: int
    share: float
    recall: float
    precision: float
    estimate: float
    noisy: float
    repaired: float
    true: float


def measure(data: Banking77 | None = None, seeds: int = SEEDS) -> tuple[list[Measured], list[Grid]]:
    """Return the aims: found at the rate of the bar, and worth it at every rate; and each run."""
    with threadpool_limits(1):  # As in a build.
        found = list(sweep(data or Banking77.load(), seeds))
    measured = list[Measured]()
    for kind in KINDS:
        at_bar = [run for run in found if run.kind == kind and run.rate == BAR_RATE]
        noisy = [run for run in found if run.kind == kind]
        gain = min(run.repaired - run.noisy for run in noisy)
        recall, precision = mean(run.recall for run in at_bar), mean(run.precision for run in at_bar)
        measured += [
            Measured(f"{kind}, {BAR_RATE:.0%} wrong labels: found", "share", recall, min_value=0.8),
            Measured(f"{kind}, {BAR_RATE:.0%} wrong labels: precision", "share", precision, min_value=0.85),
            Measured(f"{kind}, 5 to 30 %: least gain of repairing", "accuracy", gain, min_value=0.0001),
        ]
    measured.append(Measured("Banking77 as it is: held back", "share", found[0].share))
    return measured, [_grid(found)]


def sweep(data: Banking77, seeds: int) -> Iterator[Found]:
    """Yield a run without planted noise, then some for each kind and rate."""
    true = data.accuracy(data.true)
    yield _run(data, "none", 0.0, 0, true)
    for kind in KINDS:
        for rate in RATES:
            for seed in range(seeds):
                yield _run(data, kind, rate, seed, true)


def _run(data: Banking77, kind: str, rate: float, seed: int, true: float) -> Found:
    chance = np.random.default_rng([20, seed, KINDS.index(kind) if kind in KINDS else 2])
    labels = with_noise(data, kind, rate, chance)
    wrong = labels != data.true
    held, estimate = held_back(data, labels)
    answers_right = chance.random(len(labels)) < REVIEWERS_RIGHT
    mistaken = chance.integers(0, len(data.spec.labels), len(labels))
    repaired = np.where(held, np.where(answers_right, data.true, mistaken), labels)
    both = int(np.sum(held & wrong))
    return Found(
        kind=kind,
        rate=rate,
        seed=seed,
        share=float(held.mean()),
        recall=both / max(1, int(wrong.sum())),
        precision=both / max(1, int(held.sum())),
        estimate=estimate,
        noisy=true if not rate else data.accuracy(labels),
        repaired=data.accuracy(repaired),
        true=true,
    )


def with_noise(data: Banking77, kind: str, rate: float, chance: np.random.Generator) -> Labels:
    """Return the labels with a share of them replaced by wrong ones."""
    labels, count = data.true.copy(), len(data.spec.labels)
    centres = np.stack([data.train[data.true == number].mean(axis=0) for number in range(count)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    nearest = np.argsort(-(centres @ centres.T), axis=1)[:, 1 : 1 + _CONFUSABLE]
    for row in chance.choice(len(labels), round(rate * len(labels)), replace=False):
        others = np.setdiff1d(np.arange(count), labels[row]) if kind == "uniform" else nearest[labels[row]]
        labels[row] = chance.choice(others)
    return labels


def held_back(data: Banking77, labels: Labels) -> tuple[npt.NDArray[np.bool_], float]:
    """Return which rows a build holds back, and cleanlab's estimate of the share of wrong labels."""
    rows = [
        Row(call(text), (Answer(text=data.spec.labels[label]),), data.spec.labels[label], f"p{number}", (), START)
        for number, (text, label) in enumerate(zip(data.texts, labels, strict=True))
    ]
    noise = find_noise(rows, (), data.spec, data.scorer)
    held = np.zeros(len(rows), dtype=np.bool_)
    held[[int(prediction_id[1:]) for prediction_id in noise.held_ids]] = True
    return held, noise.issues / max(1, noise.judged)


def _grid(found: Sequence[Found]) -> Grid:
    columns = ("noise", "rate", "seed", "held back", "recall", "precision", "cleanlab's estimate", "accuracy as given",
               "repaired", "true labels")  # fmt: skip
    rows = [
        (
            run.kind, f"{run.rate:.0%}", str(run.seed), f"{run.share:.1%}", f"{run.recall:.1%}",
            f"{run.precision:.1%}", f"{run.estimate:.1%}", f"{run.noisy:.2%}", f"{run.repaired:.2%}",
            f"{run.true:.2%}",
        )
        for run in found
    ]  # fmt: skip
    return Grid("Planted label noise on Banking77's training part", columns, rows)
