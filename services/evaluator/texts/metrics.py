"""Scores generated texts by every metric: by their words, and by the sentence encoder that the stack installs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from schemas.evaluation_settings import TextMetric
from services.evaluator.statistics.intervals import Floats
from shared.grading.overlap import WORD_METRICS
from shared.model.embedding import Embedder


def word_scores(expected: Sequence[str], given: Sequence[str | None]) -> dict[TextMetric, Floats]:
    """Return each metric's scores by row, in [0, 1]. None, a request that failed, is worth 0."""
    pairs = list(zip(given, expected, strict=True))
    return {
        name: np.array([0.0 if text is None else metric(text, wanted) for text, wanted in pairs], dtype=np.float64)
        for name, metric in WORD_METRICS.items()
    }


def cosines(expected: Sequence[str], given: Sequence[str | None], encoder: Embedder) -> Floats:
    """Return the cosines of the texts' vectors by row, at least 0. Raises DependencyUnavailable without the encoder."""
    texts = list(dict.fromkeys([*expected, *(text for text in given if text)]))
    vectors = dict(zip(texts, encoder.embed(texts), strict=True))
    found = [
        float(vectors[text] @ vectors[wanted]) if text else 0.0 for text, wanted in zip(given, expected, strict=True)
    ]
    return np.clip(np.array(found, dtype=np.float64), 0.0, 1.0)


Scores = Mapping[TextMetric, tuple[Floats, Floats]]
"""The candidate's and production's scores by row, for each metric."""
