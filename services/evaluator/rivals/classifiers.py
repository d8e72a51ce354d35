"""Linear classifiers as rivals of the adapter: logistic regression on TF-IDF and on embeddings (scikit-learn)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from schemas.approaches import ApproachKind
from shared.model.embedding import Embedder, Vectors

MAX_ROWS = {ApproachKind.TF_IDF: 20_000, ApproachKind.EMBEDDING: 5_000}
"""Training rows that a classifier is fitted on: fitting on all of a large task would take longer than the adapters."""
_MAX_FEATURES = 50_000
_MAX_PARAMETERS = 4_000_000
"""Of a linear classifier: a number for each feature and class. Fitting takes 290 bytes for each."""
_MAX_CELLS = 20_000_000
"""Training rows times classes: fitting has three such matrices, of 8 bytes for each."""
_C = 10.0
_MAX_ITERATIONS = 500
_TIMED = 40

Featurise = Callable[[Sequence[str]], Any]
"""Texts → a matrix with a row for each."""


@dataclass(frozen=True)
class TrainingRows:
    """Texts with their labels and weights, and the group of near-copies that each is of."""

    texts: list[str]
    labels: list[str]
    weights: list[float]
    groups: list[str]

    def first(self, count: int) -> TrainingRows:
        return TrainingRows(self.texts[:count], self.labels[:count], self.weights[:count], self.groups[:count])


@dataclass(frozen=True)
class ClassifierResult:
    """A classifier's answers to the held-out texts, the time of single answers in ms, and its training rows."""

    answers: list[str]
    latencies_ms: list[float]
    examples: int


def tf_idf(classes: int) -> TfidfVectorizer:
    """Return features of words and their parts: what does best on few rows with wrong labels among them.

    The more `classes` are told apart by them, the fewer there are: of a task with several labels at once each set of
    them is a class, hundreds altogether.
    """
    most = max(1, min(_MAX_FEATURES, _MAX_PARAMETERS // classes))
    return TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5), max_features=most)


def fit(features: Any, labels: Iterable[str], weights: Iterable[float]) -> LogisticRegression:
    """Fit a logistic regression, regularised the same for every rival."""
    return LogisticRegression(C=_C, max_iter=_MAX_ITERATIONS).fit(features, list(labels), list(weights))


def tf_idf_classifier(train: TrainingRows, texts: Sequence[str]) -> ClassifierResult:
    """Fit on the training rows and answer the texts. `train` has at least two labels."""
    train = train.first(MAX_ROWS[ApproachKind.TF_IDF])
    train = train.first(max(MAX_ROWS[ApproachKind.EMBEDDING], _MAX_CELLS // len(set(train.labels))))
    vectoriser = tf_idf(len(set(train.labels)))
    model = fit(vectoriser.fit_transform(train.texts), train.labels, train.weights)
    return _answer(model, vectoriser.transform, texts, len(train.texts))


def embedding_classifier(
    train: TrainingRows, vectors: Vectors, embedder: Embedder, texts: Sequence[str]
) -> ClassifierResult:
    """Fit on the training rows, whose embeddings are `vectors` [rows, 384], and answer the texts."""
    model = fit(vectors, train.labels, train.weights)
    return _answer(model, embedder.embed, texts, len(train.texts))


def nearest(vectors: Vectors, queries: Vectors, count: int) -> list[list[int]]:
    """Return for each query the rows of `vectors` that are most similar to it, the most similar one last.

    Both are matrices of unit vectors.
    """
    return [list(map(int, np.argsort(row, kind="stable")[-count:])) for row in queries @ vectors.T]


def _answer(model: LogisticRegression, featurise: Featurise, texts: Sequence[str], examples: int) -> ClassifierResult:
    answers = [str(answer) for answer in model.predict(featurise(texts))]
    latencies = []
    for text in texts[:_TIMED]:
        started = time.perf_counter()
        model.predict(featurise([text]))
        latencies.append((time.perf_counter() - started) * 1000)
    return ClassifierResult(answers, latencies, examples)
