"""Planted label noise on Banking77: what is found, and what training on the repaired set is worth.

Wrong labels are uniform, or one of the three most similar intents. The rules and the model are those of a build. People
are asked about every label that is held back and answer rightly in 95 %. A logistic regression on embeddings stands for
the fine-tuned model; it is tested on Banking77's own test part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from schemas.conversation import Answer, Call, Message, Role
from schemas.tasks import TaskSpec
from services.dataset_builder.building.rows import Row
from services.dataset_builder.checks.label_noise import find_noise
from services.dataset_builder.recipe import LabelScorer
from shared.model.embedding import HalfVectors
from tests.benchmarks.builds import banking77, task_spec

KINDS = ("uniform", "confusable")
RATES = (0.05, 0.1, 0.15, 0.2, 0.3)
BAR_RATE = 0.15
SEEDS = 3
REVIEWERS_RIGHT = 0.95
_CONFUSABLE = 3
_TIME = datetime(2026, 11, 2, tzinfo=UTC)

Labels = npt.NDArray[np.int64]


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


class Embeddings:
    """The vectors of texts that are embedded already."""

    def __init__(self, texts: Sequence[str], vectors: HalfVectors) -> None:
        self._rows = {text: row for row, text in enumerate(texts)}
        self._vectors = vectors

    def add(self, texts: Sequence[str]) -> None:
        """Nothing is missing."""

    def read(self, texts: Sequence[str]) -> HalfVectors:
        return self._vectors[[self._rows[text] for text in texts]]


class Banking77:
    """Both parts with their embeddings."""

    def __init__(self, train: HalfVectors, test: HalfVectors) -> None:
        self.spec: TaskSpec = task_spec("noise")
        self.texts, labels = zip(*banking77("train"), strict=True)
        self.true = self._numbers(labels)
        self.train, self.test = train.astype(np.float32), test.astype(np.float32)
        self.test_labels = self._numbers([label for _, label in banking77("test")])
        self.scorer = LabelScorer(Embeddings(self.texts, train))

    def _numbers(self, labels: Sequence[str]) -> Labels:
        places = {label: number for number, label in enumerate(self.spec.labels)}
        return np.array([places[label] for label in labels])

    def with_noise(self, kind: str, rate: float, chance: np.random.Generator) -> Labels:
        """Return the labels with a share of them replaced by wrong ones."""
        labels, count = self.true.copy(), len(self.spec.labels)
        centres = np.stack([self.train[self.true == number].mean(axis=0) for number in range(count)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        nearest = np.argsort(-(centres @ centres.T), axis=1)[:, 1 : 1 + _CONFUSABLE]
        for row in chance.choice(len(labels), round(rate * len(labels)), replace=False):
            others = np.setdiff1d(np.arange(count), labels[row]) if kind == "uniform" else nearest[labels[row]]
            labels[row] = chance.choice(others)
        return labels

    def held_back(self, labels: Labels) -> tuple[npt.NDArray[np.bool_], float]:
        """Return which rows a build holds back, and cleanlab's estimate of the share of wrong labels."""
        rows = [
            self._row(number, text, self.spec.labels[label])
            for number, (text, label) in enumerate(zip(self.texts, labels, strict=True))
        ]
        noise = find_noise(rows, (), self.spec, self.scorer)
        held = np.zeros(len(rows), dtype=np.bool_)
        held[[int(prediction_id[1:]) for prediction_id in noise.held_ids]] = True
        return held, noise.issues / max(1, noise.judged)

    def _row(self, number: int, text: str, label: str) -> Row:
        call = Call(messages=(Message(role=Role.USER, content=text),))
        return Row(call, (Answer(text=label),), label, f"p{number}", (), _TIME)

    def accuracy(self, labels: Labels) -> float:
        """Train on these labels; return the accuracy on the test part."""
        model = LogisticRegression(C=10.0, max_iter=1000, tol=1e-4).fit(self.train, labels)
        return float(np.mean(model.predict(self.test) == self.test_labels))


def sweep(data: Banking77) -> Iterator[Found]:
    """Yield a run without planted noise, then some for each kind and rate."""
    true = data.accuracy(data.true)
    yield _run(data, "none", 0.0, 0, true)
    for kind in KINDS:
        for rate in RATES:
            for seed in range(SEEDS):
                yield _run(data, kind, rate, seed, true)


def _run(data: Banking77, kind: str, rate: float, seed: int, true: float) -> Found:
    chance = np.random.default_rng([20, seed, KINDS.index(kind) if kind in KINDS else 2])
    labels = data.with_noise(kind, rate, chance)
    wrong = labels != data.true
    held, estimate = data.held_back(labels)
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


def plot(found: Sequence[Found], path: Path) -> None:
    """Draw recall, precision and accuracies over the rate of noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, style in zip(KINDS, ("-", "--"), strict=True):
        runs = [run for run in found if run.kind == kind and run.seed == 0]
        rates = [run.rate for run in runs]
        left.plot(rates, [run.recall for run in runs], style, color="tab:blue", label=f"recall, {kind}")
        left.plot(rates, [run.precision for run in runs], style, color="tab:orange", label=f"precision, {kind}")
        right.plot(rates, [run.noisy for run in runs], style, color="tab:red", label=f"as given, {kind}")
        right.plot(rates, [run.repaired for run in runs], style, color="tab:green", label=f"repaired, {kind}")
    right.axhline(found[0].true, color="grey", linewidth=0.8, label="true labels")
    left.axvline(BAR_RATE, color="grey", linewidth=0.5)
    for axes, title in ((left, "Wrong labels that are held back"), (right, "Accuracy after training")):
        axes.set(title=title, xlabel="share of wrong labels")
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
