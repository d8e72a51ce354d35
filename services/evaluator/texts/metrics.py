"""Scores generated texts by every metric: by their words, and by the sentence encoder that the stack installs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from schemas.evaluation_settings import TextMetric
from services.evaluator.statistics.intervals import Floats
from shared.grading.overlap import WORD_METRICS
from shared.model.embedding import SentenceEmbedder, Vectors

MODEL_METRICS = (TextMetric.COSINE, TextMetric.BERT_SCORE)
_AT_ONCE = 64
"""Rows whose texts are encoded together: a long text's tokens have 400 KB of vectors."""


def word_scores(expected: Sequence[str], given: Sequence[str | None]) -> dict[TextMetric, Floats]:
    """Return each metric's scores by row, in [0, 1]. None, a request that failed, is worth 0."""
    pairs = list(zip(given, expected, strict=True))
    return {
        name: np.array([0.0 if text is None else metric(text, wanted) for text, wanted in pairs], dtype=np.float64)
        for name, metric in WORD_METRICS.items()
    }


def model_scores(
    expected: Sequence[str], arms: Sequence[Sequence[str | None]], encoder: SentenceEmbedder
) -> list[dict[TextMetric, Floats]]:
    """Return the same of the metrics that need the encoder, for each arm. Raises DependencyUnavailable without it.

    Cosine is that of the sentences' vectors, at least 0. BERTScore (Zhang et al. 2020) is its F1 without rescaling and
    weights: each token's greatest cosine with one of the other text. With this encoder it says less than the others.
    """
    parts = [
        _model_scores(expected[start : start + _AT_ONCE], [arm[start : start + _AT_ONCE] for arm in arms], encoder)
        for start in range(0, max(len(expected), 1), _AT_ONCE)
    ]
    return [
        {metric: np.concatenate([part[number][metric] for part in parts]) for metric in MODEL_METRICS}
        for number in range(len(arms))
    ]


def _model_scores(
    expected: Sequence[str], arms: Sequence[Sequence[str | None]], encoder: SentenceEmbedder
) -> list[dict[TextMetric, Floats]]:
    texts = list(dict.fromkeys([*expected, *(text for arm in arms for text in arm if text)]))
    sentences = dict(zip(texts, encoder.embed(texts), strict=True))
    tokens = dict(zip(texts, encoder.embed_tokens(texts), strict=True))
    return [
        {
            TextMetric.COSINE: _by_row(expected, arm, lambda one, other: float(sentences[one] @ sentences[other])),
            TextMetric.BERT_SCORE: _by_row(expected, arm, lambda one, other: bert_score(tokens[one], tokens[other])),
        }
        for arm in arms
    ]


def bert_score(given: Vectors, expected: Vectors) -> float:
    """Return the F1 of two texts' tokens, whose vectors are rows of length 1; 0 if either has none."""
    if not len(given) or not len(expected):
        return 0.0
    cosines = given @ expected.T
    precision, recall = float(cosines.max(axis=1).mean()), float(cosines.max(axis=0).mean())
    return 2 * precision * recall / (precision + recall) if min(precision, recall) > 0.0 else 0.0


def _by_row(expected: Sequence[str], given: Sequence[str | None], score: Callable[[str, str], float]) -> Floats:
    found = [score(text, wanted) if text else 0.0 for text, wanted in zip(given, expected, strict=True)]
    return np.clip(np.array(found, dtype=np.float64), 0.0, 1.0)


Scores = Mapping[TextMetric, tuple[Floats, Floats]]
"""The candidate's and production's scores by row, for each metric."""


def merged(*arms: Mapping[TextMetric, Floats]) -> dict[TextMetric, tuple[Floats, Floats]]:
    """Return the scores of two arms side by side."""
    candidate, production = arms
    return {metric: (candidate[metric], production[metric]) for metric in candidate}
