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

INTENTS = 77
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
    """Both parts with their embeddings, of all intents or of so many that are spread over them."""

    def __init__(self, train: HalfVectors, test: HalfVectors, intents: int = INTENTS) -> None:
        spec = task_spec("noise")
        labels = spec.labels[:: len(spec.labels) // intents][:intents]
        self.spec = spec.model_copy(update={"labels": labels})
        self._all = train, test
        self.texts, self.true, vectors = self._of("train", train)
        _, self.test_labels, tested = self._of("test", test)
        self.train, self.test = vectors.astype(np.float32), tested.astype(np.float32)
        self.scorer = LabelScorer(_Embedded(self.texts, vectors))

    @classmethod
    def load(cls) -> Banking77:
        """Embed both parts, as a build does; their vectors are kept for the next run."""
        return cls(*(_vectors(part) for part in ("train", "test")))

    def of_intents(self, intents: int) -> Banking77:
        """Return the same data of fewer intents."""
        return Banking77(*self._all, intents)

    def _of(self, part: str, vectors: HalfVectors) -> tuple[list[str], Labels, HalfVectors]:
        numbers = {label: number for number, label in enumerate(self.spec.labels)}
        rows = [(row, *found) for row, found in enumerate(banking77(part)) if found[1] in numbers]
        labels = np.array([numbers[label] for _, _, label in rows])
        return [text for _, text, _ in rows], labels, vectors[[row for row, _, _ in rows]]

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
