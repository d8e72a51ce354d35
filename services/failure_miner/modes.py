"""Failure modes: clusters of suspects, which of them are those of earlier cycles, and what they are called. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.failures import ExemplarSource, FailureMode
from services.failure_miner.domain import Suspect, Vectors
from shared.grading.text import MARK, casefolded
from shared.identity import content_hash
from shared.model.groups import Groups

MAX_EXEMPLARS = 5
EXEMPLAR_CHARS = 300
"""Of a mode in an event."""
EVENT_BYTES = 150_000
"""The most that the modes of an event take, as JSON. The topic takes a million, but a page reads them all."""
MAX_WORDS = 4
MAX_WORD_CHARS = 40
"""Longer ones are no words, and four of them no name."""
_WORD = re.compile(rf"[^\W\d_](?:'?(?:[^\W\d_]|{MARK}))+")
STOP_WORDS = frozenset(
    """a about after again all also am an and any are aren't as at be because been before being both but by can can't
    cannot could couldn't did didn't do does doesn't doing don't down during each else ever few for from further get
    got had hadn't has hasn't have haven't having he hello help her here hers hi him his how i i'd i'll i'm i've if in
    into is isn't it it's its itself just know let like me more most much my myself need no nor not now of off on once
    one only or other our ours out over own please same she should so some still such tell than thank thanks that
    that's the their them then there these they they're this those through to too under until up us very want was
    wasn't we we're were weren't what what's when where which while who whom why will with won't would you you're your
    yours""".split()  # noqa: SIM905 - words read better as words
)


@dataclass(frozen=True)
class StoredMode:
    """A failure mode of an earlier cycle."""

    mode_id: str
    centroid: Vectors


@dataclass(frozen=True)
class FoundMode:
    """A failure mode of this cycle, with its centroid and the indices of its suspects."""

    mode: FailureMode
    centroid: Vectors
    members: tuple[int, ...]


def match_modes(found: Vectors, stored: Vectors, cosine: float) -> dict[int, int]:
    """Match found centroids to stored ones: pairs of at least `cosine`, nearest first, one to one.

    Rows of both are of length 1. Matching centroids week by week beats assigning points to old ones (measured).
    """
    if not len(found) or not len(stored):
        return {}
    similarity = found @ stored.T
    order = np.argsort(-similarity, axis=None, kind="stable")
    matched: dict[int, int] = {}
    for flat in order:
        new, old = divmod(int(flat), len(stored))
        if similarity[new, old] < cosine:
            break
        if new not in matched and old not in matched.values():
            matched[new] = old
    return matched


def describe_modes(
    suspects: Sequence[Suspect],
    cluster_of: Sequence[int],
    stored: Sequence[StoredMode],
    cycle_id: str,
    same_mode_cosine: float,
) -> list[FoundMode]:
    """Describe clusters as failure modes, largest first. `cluster_of[i]` is that of `suspects[i]`; -1 is noise.

    Stored modes whose centroids are of another encoder, which tells by their length, are none of these.
    """
    clusters: dict[int, list[int]] = {}
    for index, number in enumerate(_copies_together([s.text for s in suspects], cluster_of)):
        if number >= 0:
            clusters.setdefault(int(number), []).append(index)
    members = sorted(clusters.values(), key=lambda m: (-len(m), m))
    if not members:
        return []
    centroids = np.stack([_centroid(np.stack([suspects[i].embedding for i in m])) for m in members])
    stored = [mode for mode in stored if len(mode.centroid) == centroids.shape[1]]
    old = np.stack([mode.centroid for mode in stored]) if stored else np.empty((0, centroids.shape[1]))
    matched = match_modes(centroids, old.astype(np.float32), same_mode_cosine)
    words = name_words([[suspects[i].text for i in m] for m in members])
    found = []
    for number, indices in enumerate(members):
        earlier = matched.get(number)
        nearest = sorted(indices, key=lambda i: (-float(suspects[i].embedding @ centroids[number]), i))
        exemplars = _distinct_texts([suspects[i] for i in nearest])[:MAX_EXEMPLARS]
        confidences = [c for i in indices if (c := suspects[i].confidence) is not None]
        mode_id = (
            stored[earlier].mode_id if earlier is not None else f"mode-{content_hash(cycle_id, exemplars[0].text)}"
        )
        mode = FailureMode(
            mode_id=mode_id,
            name=" ".join(words[number]) or mode_id,  # Never a quotation: the name outlives the erasure of its source.
            words=words[number],
            exemplars=tuple(s.text for s in exemplars),
            sources=tuple(
                ExemplarSource(prediction_id=s.prediction_id, user_hash=s.user_hash, predicted_at=s.occurred_at)
                for s in exemplars
            ),
            size=len(indices),
            share=len(indices) / len(suspects),
            mean_confidence=sum(confidences) / len(confidences) if confidences else None,
            is_new=earlier is None,
        )
        found.append(FoundMode(mode, centroids[number], tuple(indices)))
    return found


def _copies_together(texts: Sequence[str], cluster_of: Sequence[int]) -> list[int]:
    """Return the clusters, those joined that share a text, each with all copies of its texts, noise too.

    Copies are at distance 0 from each other, and HDBSCAN splits a hundred of them anywhere. Parts of one text would
    have the same exemplars, and so the same id.
    """
    of_text: dict[str, int] = {}
    clustered = [(text, number) for text, number in zip(texts, cluster_of, strict=True) if number >= 0]
    joined = Groups(max(cluster_of, default=-1) + 1)
    for text, number in clustered:
        joined.join(of_text.setdefault(text, number), number)
    numbers = [of_text.get(text, number) for text, number in zip(texts, cluster_of, strict=True)]
    return [joined[number] if number >= 0 else number for number in numbers]


def modes_for_event(modes: Iterable[FailureMode]) -> tuple[FailureMode, ...]:
    """Return as many of the modes, which are largest first, as an event has room for, their exemplars cut."""
    kept, size = [], 0
    for mode in modes:
        short = mode.model_copy(update={"exemplars": tuple(text[:EXEMPLAR_CHARS] for text in mode.exemplars)})
        size += len(short.model_dump_json().encode())
        if size > EVENT_BYTES:
            break
        kept.append(short)
    return tuple(kept)


def _distinct_texts(suspects: Sequence[Suspect]) -> list[Suspect]:
    """Return the first suspect of each text."""
    first: dict[str, Suspect] = {}
    for suspect in suspects:
        first.setdefault(suspect.text, suspect)
    return list(first.values())


def _centroid(rows: Vectors) -> Vectors:
    mean = rows.mean(axis=0)
    unit: Vectors = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    return unit


def name_words(clusters: Sequence[Sequence[str]], count: int = MAX_WORDS) -> list[tuple[str, ...]]:
    """Return the words that distinguish each cluster, best first, by c-TF-IDF (Grootendorst 2022, BERTopic).

    A word's weight in a cluster is its share there times log(1 + average words per cluster / its count in all).
    """
    counts = [Counter(w for text in texts for w in _words(text)) for texts in clusters]
    total: Counter[str] = Counter()
    for counter in counts:
        total.update(counter)
    average = sum(total.values()) / max(len(counts), 1)
    named = []
    for counter in counts:
        size = max(sum(counter.values()), 1)
        weights = {w: n / size * math.log1p(average / total[w]) for w, n in counter.items()}
        best = sorted(weights, key=lambda w: (-weights[w], w))
        named.append(tuple(best[:count]))
    return named


def _words(text: str) -> list[str]:
    words = _WORD.findall(casefolded(text).replace("’", "'"))
    return [word for word in words if len(word) <= MAX_WORD_CHARS and word not in STOP_WORDS]
