"""A linear classifier as a rival of the adapter: logistic regression on sentence embeddings (scikit-learn)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.linear_model import LogisticRegression

from schemas.datasets import Example
from shared.conversation import comparable_text
from shared.model.embedding import Embedder

MAX_ROWS = 5_000
"""Training rows that it is fitted on: fitting on all of a large task would take longer than the adapter."""
_C = 10.0
_MAX_ITERATIONS = 500
_TIMED = 40


@dataclass(frozen=True)
class ClassifierResult:
    """A classifier's answers to the held-out texts, the time of single answers in ms, and its training rows."""

    answers: list[str]
    latencies_ms: list[float]
    examples: int


def classify(
    train: Sequence[Example], texts: Sequence[str], embedder: Embedder, prompts: frozenset[str]
) -> ClassifierResult:
    """Fit on the training rows and answer the texts. `prompts`: the task's own, which no text is read with.

    The rows have at least two labels; a set of labels is a class of its own (label powerset, Tsoumakas & Katakis 2007).
    Raises DependencyUnavailable without the sentence encoder.
    """
    vectors = embedder.embed([comparable_text(row.prompt, prompts) for row in train])
    model = LogisticRegression(C=_C, max_iter=_MAX_ITERATIONS)
    model.fit(vectors, [row.answer for row in train], [row.weight for row in train])
    answers = [str(answer) for answer in model.predict(embedder.embed(texts))]
    latencies = []
    for text in texts[:_TIMED]:
        started = time.perf_counter()
        model.predict(embedder.embed([text]))
        latencies.append((time.perf_counter() - started) * 1000)
    return ClassifierResult(answers, latencies, len(train))
