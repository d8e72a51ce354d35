"""Who is a suspect, what people are asked of it, and which failure modes were here before. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from schemas.base import Messages, input_text
from schemas.failures import ExemplarSource, FailureMode
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import FeedbackGiven, PredictionLogged
from schemas.tasks import TaskSpec
from services.failure_miner.naming import name_words
from shared.identity import content_hash, event_id
from shared.kafka.delivery import Delivery

Vectors = npt.NDArray[np.float32]
"""Embeddings, one a row, each of length 1: their dot product is the cosine."""

MAX_TEXT_CHARS = 2_000
"""The sentence encoder reads 256 tokens; what is beyond would not count."""
EXEMPLARS = 5


@dataclass(frozen=True)
class Suspect:
    """A prediction that may be wrong. `label` is what a person said it should have been, where one did.

    `occurred_at`: when it was asked and answered, which forgetting goes by; where the event did not say, its own time.
    """

    prediction_id: str
    task: str
    task_revision: str
    occurred_at: datetime
    text: str
    answer: str
    confidence: float | None
    topic: str
    partition: int
    offset: int
    embedding: Vectors
    label: str | None = None
    user_hash: str | None = None


@dataclass(frozen=True)
class Answered:
    """A prediction as the lake holds it."""

    prediction_id: str
    task: str
    task_revision: str
    occurred_at: datetime
    messages: Messages
    answer: str
    confidence: float | None
    user_hash: str | None


@dataclass(frozen=True)
class StoredMode:
    """A failure mode of an earlier cycle."""

    mode_id: str
    centroid: Vectors


@dataclass(frozen=True)
class FoundMode:
    """One cluster of this cycle: what the event says of it, its centroid, and which suspects are in it."""

    mode: FailureMode
    centroid: Vectors
    members: tuple[int, ...]


def is_suspect(confidence: float | None, threshold: float) -> bool:
    """An answer without a confidence may be anything, so it is one."""
    return confidence is None or confidence < threshold


def is_negative(feedback: FeedbackGiven) -> bool:
    """Whether feedback says that the answer was wrong."""
    return feedback.kind in ("edited", "label") or feedback.positive is False


def text_of(messages: Messages) -> str:
    """What is embedded of a conversation."""
    return input_text(messages)[:MAX_TEXT_CHARS]


def suspect_of_prediction(delivery: Delivery[PredictionLogged], embedding: Vectors) -> Suspect:
    event = delivery.event
    return Suspect(
        event.prediction_id, event.task, event.task_revision, event.occurred_at, text_of(event.messages),
        event.answer, event.confidence.score, delivery.topic, delivery.partition, delivery.offset, embedding,
        user_hash=event.user_hash,
    )  # fmt: skip


def suspect_of_feedback(delivery: Delivery[FeedbackGiven], answered: Answered, embedding: Vectors) -> Suspect:
    return Suspect(
        answered.prediction_id, answered.task, answered.task_revision, answered.occurred_at,
        text_of(answered.messages), answered.answer, answered.confidence, delivery.topic, delivery.partition,
        delivery.offset, embedding, label=delivery.event.text, user_hash=answered.user_hash,
    )  # fmt: skip


def suspect_of_correction(delivery: Delivery[CorrectionSubmitted], embedding: Vectors) -> Suspect:
    event = delivery.event
    return Suspect(
        event.prediction_id, event.task, event.task_revision, event.happened_at, text_of(event.messages),
        event.answers[0], None, delivery.topic, delivery.partition, delivery.offset, embedding,
        user_hash=event.user_hash,
    )  # fmt: skip


def same_answer(left: str, right: str) -> bool:
    return left.strip().casefold() == right.strip().casefold()


def question(
    spec: TaskSpec,
    prediction_id: str,
    messages: Messages,
    answer: str,
    confidence: float | None,
    purpose: Purpose,
    user_hash: str | None = None,
    predicted_at: datetime | None = None,
) -> LabelRequested:
    """What people are asked of a prediction. One prediction is one question, so its ids follow from it."""
    request_id = str(event_id("review", prediction_id))
    return LabelRequested(
        event_id=event_id("labels.requested", request_id),
        task=spec.name,
        task_revision=spec.revision,
        request_id=request_id,
        prediction_id=prediction_id,
        purpose=purpose,
        messages=messages,
        answers=(answer,),
        labels=spec.labels,
        priority=1.0 - (confidence or 0.0),
        overlap=2 if _share_of(prediction_id) < spec.failures.overlap_share else 1,
        user_hash=user_hash,
        predicted_at=predicted_at,
    )


def match_modes(found: Vectors, stored: Vectors, cosine: float) -> dict[int, int]:
    """Which found centroid is which stored one: pairs of at least `cosine`, nearest first, one to one.

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


def describe(
    suspects: Sequence[Suspect],
    labels: Sequence[int],
    stored: Sequence[StoredMode],
    cycle_id: str,
    same_mode_cosine: float,
) -> list[FoundMode]:
    """Clusters to failure modes, largest first. `labels[i]` is the cluster of `suspects[i]`; -1 is noise."""
    clusters: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        if label >= 0:
            clusters.setdefault(int(label), []).append(position)
    members = sorted(clusters.values(), key=lambda m: (-len(m), m))
    if not members:
        return []
    centroids = np.stack([_centroid(np.stack([suspects[i].embedding for i in m])) for m in members])
    old = np.stack([mode.centroid for mode in stored]) if stored else np.empty((0, centroids.shape[1]))
    matched = match_modes(centroids, old.astype(np.float32), same_mode_cosine)
    words = name_words([[suspects[i].text for i in m] for m in members])
    found = []
    for number, positions in enumerate(members):
        known = matched.get(number)
        near = sorted(positions, key=lambda i: (-float(suspects[i].embedding @ centroids[number]), i))
        shown = _distinct([suspects[i] for i in near])[:EXEMPLARS]
        confidences = [c for i in positions if (c := suspects[i].confidence) is not None]
        mode_id = f"mode-{content_hash(cycle_id, shown[0].text)}" if known is None else stored[known].mode_id
        mode = FailureMode(
            mode_id=mode_id,
            name=" ".join(words[number]) or mode_id,  # Never a quotation: a name outlives what it was taken from.
            words=words[number],
            exemplars=tuple(s.text for s in shown),
            sources=tuple(
                ExemplarSource(prediction_id=s.prediction_id, user_hash=s.user_hash, predicted_at=s.occurred_at)
                for s in shown
            ),
            size=len(positions),
            share=len(positions) / len(suspects),
            mean_confidence=sum(confidences) / len(confidences) if confidences else None,
            is_new=known is None,
        )
        found.append(FoundMode(mode, centroids[number], tuple(positions)))
    return found


def _distinct(near: Sequence[Suspect]) -> list[Suspect]:
    """The first suspect of each text."""
    first: dict[str, Suspect] = {}
    for suspect in near:
        first.setdefault(suspect.text, suspect)
    return list(first.values())


def _centroid(rows: Vectors) -> Vectors:
    mean = rows.mean(axis=0)
    unit: Vectors = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    return unit


def _share_of(prediction_id: str) -> float:
    """A number in [0, 1) that follows from the id: the same prediction is always in the same share."""
    return int(hashlib.sha256(prediction_id.encode()).hexdigest()[:8], 16) / 2**32
