"""Banking77 with its sentence embeddings: a logistic regression on them stands for the fine-tuned model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from services.dataset_builder.recipe import LabelScorer
from shared.model.embedding import CachedEmbedder, HalfVectors, SentenceEmbedder
from tests.benchmarks.banking77 import banking77, task_spec
from tests.conftest import ROOT, shared_home

Labels = npt.NDArray[np.int64]


class _Embedded:
    """The vectors of texts that are embedded already."""

    def __init__(self, texts: Sequence[str], vectors: HalfVectors) -> None:
        self._rows = {text: row for row, text in enumerate(texts)}
        self._vectors = vectors

    def store(self, texts: Sequence[str]) -> None:
        """Nothing is missing."""

    def read(self, texts: Sequence[str]) -> HalfVectors:
        return self._vectors[[self._rows[text] for text in texts]]


class Banking77:
    """Both parts with their embeddings. `every`: the training part is every so many rows of it."""

    def __init__(self, train: HalfVectors, test: HalfVectors, every: int = 1) -> None:
        self.spec = task_spec("noise")
        self.texts, labels = zip(*banking77("train")[::every], strict=True)
        self.true = self._numbers(labels)
        self.train, self.test = train[::every].astype(np.float32), test.astype(np.float32)
        self.test_labels = self._numbers([label for _, label in banking77("test")])
        self.scorer = LabelScorer(_Embedded(self.texts, train[::every]))

    @classmethod
    def load(cls) -> Banking77:
        """Embed both parts, as a build does; their vectors are kept for the next run."""
        return cls(*(_vectors(part) for part in ("train", "test")))

    def _numbers(self, labels: Sequence[str]) -> Labels:
        places = {label: number for number, label in enumerate(self.spec.labels)}
        return np.array([places[label] for label in labels])

    def accuracy(
        self, labels: Labels, rows: Sequence[int] | slice = slice(None), weights: Sequence[float] | None = None
    ) -> float:
        """Train on rows with these labels; return the accuracy on the test part."""
        model = LogisticRegression(C=10.0, max_iter=1000, tol=1e-4).fit(self.train[rows], labels, weights)
        return float(np.mean(model.predict(self.test) == self.test_labels))


def _vectors(part: str) -> HalfVectors:
    embedder = SentenceEmbedder(shared_home() / "models" / "all-MiniLM-L6-v2", fast=True)
    cache = ROOT / ".ratchet" / "bench" / f"banking77-{part}.vectors"
    return CachedEmbedder(embedder, cache, lambda done, total: None).embed([text for text, _ in banking77(part)])
