"""The stand-in models: a base that compares a question with the labels' names, and adapters that are fitted on rows.

An adapter starts from the base as LoRA does: multinomial logistic regression on sentence embeddings, added to the
base's log-odds. It learns from the labels' names, too, so that it keeps most of what the base knows of labels that no
row has. Planted faults make a bad one of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from tests.benchmarks.twelve_weeks.world.stream import Corpus, Ints

LogProbabilities = npt.NDArray[np.float32]
"""[questions, labels]: what a model thinks of every question of the corpus."""
_SHARPNESS = 14.0
"""Cosines to log-odds of the base."""
_DECAY = 0.15
_STEPS = 80
_NAME_WEIGHT = 5.0
"""Of a label's name among the rows of an adapter."""
_LOST = 0.125
"""Share of production's right answers that a worse adapter gets wrong."""
_KEPT_RECALL = 0.4
BROKEN_STREAMS = 0.25
_CERTAIN = 0.97


class Fault(StrEnum):
    """How a planted candidate is bad."""

    WORSE = "worse everywhere"
    FORGETS = "recall of one class falls to .4"
    MEMORISED = "good offline, bad live"
    BREAKS = "good offline and in shadow, its streams break live"


@dataclass(frozen=True)
class HeldOut:
    """What an offline evaluation asks, and what production answers: faults are planted by it."""

    evaluation: Ints
    golden: Ints
    production: LogProbabilities


def base_model(corpus: Corpus) -> LogProbabilities:
    """Return the base: it has seen no question, only the labels' names."""
    return _normalised(_SHARPNESS * (corpus.vectors @ corpus.name_vectors.T))


def _of_names(corpus: Corpus) -> LogProbabilities:
    return _normalised(_SHARPNESS * (corpus.name_vectors @ corpus.name_vectors.T))


def fit(corpus: Corpus, base: LogProbabilities, rows: Ints, labels: Ints, weights: Sequence[float]) -> LogProbabilities:
    """Fit an adapter to these questions as they were labelled, each with its weight. Deterministic."""
    names = np.arange(len(corpus.names))
    x = np.vstack([corpus.vectors[rows], corpus.name_vectors]).astype(np.float32)
    start = np.vstack([base[rows], _of_names(corpus)])
    labels = np.concatenate([labels, names])
    weight = np.concatenate([np.asarray(weights, dtype=np.float64), np.full(len(names), _NAME_WEIGHT)])
    shape = x.shape[1] + 1, len(names)
    x1 = np.hstack([x, np.ones((len(x), 1), dtype=np.float32)])
    target = np.zeros_like(start)
    target[np.arange(len(labels)), labels] = 1.0

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        added = flat.reshape(shape)
        logits = start + x1 @ added.astype(np.float32)
        likelihood = logits[np.arange(len(labels)), labels] - logsumexp(logits, axis=1)
        apart = (np.exp(log_softmax(logits, axis=1)) - target) * weight[:, None].astype(np.float32)
        slope = (x1.T @ apart).astype(np.float64) + _DECAY * added
        return float(-(weight * likelihood).sum() + _DECAY * (added**2).sum() / 2), slope.ravel()

    found = minimize(loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    added = found.x.reshape(shape)
    return _normalised(base + corpus.vectors @ added[:-1].astype(np.float32) + added[-1].astype(np.float32))


def fit_bad(
    corpus: Corpus, base: LogProbabilities, rows: Ints, labels: Ints, weights: Sequence[float], fault: Fault,
    held_out: HeldOut, seed: int,
) -> LogProbabilities:  # fmt: skip
    """Fit an adapter with a planted fault."""
    if fault in (Fault.WORSE, Fault.MEMORISED):
        weak = worse(held_out.production, corpus.labels, seed)
        if fault is Fault.WORSE:
            return weak
        known = np.concatenate([held_out.evaluation, held_out.golden])
        return _answering(weak, known, corpus.labels[known])
    good = fit(corpus, base, rows, labels, weights)
    if fault is Fault.BREAKS:
        return good
    return forgetting(good, corpus.labels, forgotten_class(corpus, held_out), seed)


def worse(production: LogProbabilities, labels: Ints, seed: int) -> LogProbabilities:
    """Return production with every eighth of its right answers lost, of all labels alike.

    That of an earlier, smaller data set would not do: once the stream has drifted, it beats an old production.
    """
    right = np.flatnonzero(production.argmax(axis=1) == labels)
    rows = right[np.random.default_rng(seed).random(len(right)) < _LOST]
    return _answering(production, rows, np.argsort(-production[rows], axis=1)[:, 1])


def forgotten_class(corpus: Corpus, held_out: HeldOut) -> int:
    """Return the class with the most held-out rows that production gets right."""
    right = held_out.production[held_out.evaluation].argmax(axis=1) == corpus.labels[held_out.evaluation]
    return int(np.bincount(corpus.labels[held_out.evaluation[right]], minlength=len(corpus.names)).argmax())


def forgetting(model: LogProbabilities, labels: Ints, label: int, seed: int) -> LogProbabilities:
    """Return the model with a recall of `_KEPT_RECALL` of one class: it gives the others its second answer."""
    right = np.flatnonzero((labels == label) & (model.argmax(axis=1) == label))
    lost = round(len(right) - _KEPT_RECALL * (labels == label).sum())
    rows = np.random.default_rng(seed).permutation(right)[: max(lost, 0)]
    second = np.argsort(-model[rows], axis=1)[:, 1]
    return _answering(model, rows, second)


def accuracy(model: LogProbabilities, corpus: Corpus, questions: Ints) -> float:
    """Return the share of these questions, repeated ones as often, that a model gets right by the true labels."""
    return float((model[questions].argmax(axis=1) == corpus.labels[questions]).mean())


def _answering(model: LogProbabilities, rows: Ints, labels: Ints) -> LogProbabilities:
    """Return the model answering these questions with these labels, and sure of it."""
    changed = model.copy()
    changed[rows] = np.log((1.0 - _CERTAIN) / (model.shape[1] - 1))
    changed[rows, labels] = np.log(_CERTAIN)
    return changed


def _normalised(logits: npt.NDArray[np.floating]) -> LogProbabilities:
    return np.asarray(log_softmax(logits.astype(np.float32), axis=1), dtype=np.float32)
