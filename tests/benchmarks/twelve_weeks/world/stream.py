"""The traffic: Banking77's questions, whose intents drift from week to week. Deterministic by its seed.

New intents come within the label set, how frequent each is wanders, and the wording of each moves: its questions are
ordered along the direction in which their embeddings vary most, and each week asks from another part of that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.model.embedding import CachedEmbedder, SentenceEmbedder, Vectors
from shared.settings import Settings
from tests.benchmarks.banking77 import banking77
from tests.conftest import ROOT

Ints = npt.NDArray[np.int64]
USERS = 4_000
_USER_ZIPF, _INTENT_ZIPF = 0.8, 0.7
_FIRST_INTENTS = 0.45
"""Share of the label set that is asked in week 0; the others come one by one, the last three weeks before the end."""
_WANDER = 0.35
_WINDOW = 0.22
"""Standard deviation of the part of an intent's wording that a week asks from; 1 is all of it."""


@dataclass(frozen=True)
class Corpus:
    """All questions with their right label (an index of `names`) and their embedding, rows of length 1."""

    texts: Sequence[str]
    labels: Ints
    names: tuple[str, ...]
    vectors: Vectors
    name_vectors: Vectors

    @property
    def index(self) -> dict[str, int]:
        return {text: number for number, text in enumerate(self.texts)}


def load_corpus(settings: Settings) -> Corpus:
    """Read Banking77 and embed it, once for all runs."""
    rows = {text.strip(): label for part in ("train", "test") for text, label in banking77(part)}
    names = tuple(sorted(set(rows.values())))
    embedder = SentenceEmbedder(settings.models_folder / "all-MiniLM-L6-v2", fast=True)
    cache = ROOT / ".ratchet" / "bench" / "banking77-twelve-weeks.vectors"
    words = [name.replace("_", " ") for name in names]
    found = CachedEmbedder(embedder, cache, lambda done, total: None).embed([*rows, *words]).astype(np.float32)
    labels = np.array([names.index(label) for label in rows.values()])
    return Corpus(tuple(rows), labels, names, found[: len(rows)], found[len(rows) :])


@dataclass(frozen=True)
class Week:
    """A week's requests: which question is asked by which user, and when, as a share of the week, ascending."""

    questions: Ints
    users: Ints
    at: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stream:
    """`golden`: questions that the golden set has and that nobody asks. `starts`: the first week of each intent."""

    weeks: tuple[Week, ...]
    golden: Ints
    starts: Ints


def make_stream(corpus: Corpus, weeks: int, requests: int, golden_rows: int, seed: int) -> Stream:
    """Draw the traffic of `weeks` weeks with `requests` requests each."""
    chance = np.random.default_rng(seed)
    count = len(corpus.names)
    golden = _golden(corpus, golden_rows, chance)
    asked = np.setdiff1d(np.arange(len(corpus.texts)), golden)
    starts = _starts(count, weeks, chance)
    place = _wording(corpus, chance)
    users = _zipf(USERS, _USER_ZIPF)
    frequency = np.log(chance.permutation(_zipf(count, _INTENT_ZIPF)))
    drawn = []
    for week in range(weeks):
        frequency = frequency + _WANDER * chance.standard_normal(count)
        share = np.where(starts <= week, np.exp(frequency), 0.0)
        near = np.exp(-(((place[asked] - week / max(weeks - 1, 1)) / _WINDOW) ** 2) / 2)
        weight = near / np.bincount(corpus.labels[asked], near, count)[corpus.labels[asked]]
        weight = weight * (share / share.sum())[corpus.labels[asked]]
        questions = chance.choice(asked, size=requests, p=weight / weight.sum())
        drawn.append(Week(questions, chance.choice(USERS, size=requests, p=users), np.sort(chance.random(requests))))
    return Stream(tuple(drawn), golden, starts)


def _golden(corpus: Corpus, rows: int, chance: np.random.Generator) -> Ints:
    """Choose rows of all intents alike, from all of their wording."""
    order = chance.permutation(len(corpus.texts))
    nth = np.empty(len(order), dtype=np.int64)
    seen = np.zeros(len(corpus.names), dtype=np.int64)
    for number in order:
        nth[number] = seen[corpus.labels[number]]
        seen[corpus.labels[number]] += 1
    return np.sort(order[np.argsort(nth[order], kind="stable")][:rows])


def _starts(count: int, weeks: int, chance: np.random.Generator) -> Ints:
    first = round(_FIRST_INTENTS * count)
    later = np.linspace(1, max(weeks - 3, 1), count - first).round().astype(np.int64)
    return chance.permutation(np.concatenate([np.zeros(first, dtype=np.int64), later]))


def _wording(corpus: Corpus, chance: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return where each question is in its intent's order of wording, in [0, 1]."""
    place = np.zeros(len(corpus.texts))
    for label in range(len(corpus.names)):
        rows = np.flatnonzero(corpus.labels == label)
        centred = corpus.vectors[rows] - corpus.vectors[rows].mean(axis=0)
        direction = np.linalg.svd(centred.astype(np.float64), full_matrices=False)[2][0]
        along = centred @ direction * chance.choice([-1.0, 1.0])
        place[rows] = np.argsort(np.argsort(along)) / max(len(rows) - 1, 1)
    return place


def _zipf(count: int, exponent: float) -> npt.NDArray[np.float64]:
    weight = np.arange(1, count + 1) ** -exponent
    return weight / weight.sum()
