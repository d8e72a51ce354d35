"""The rules of who is a suspect, what people are asked, and which failure modes are those of earlier cycles. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.conversation import Answer, Call, FinishReason, input_text
from schemas.failures import ExemplarSource, FailureMode
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import FeedbackGiven, PredictionLogged
from schemas.tasks import TaskSpec
from services.failure_miner.naming import name_words
from shared.conversation import bounded_answer, bounded_call, never_trained
from shared.identity import content_hash, event_id
from shared.kafka.delivery import Delivery

Vectors = npt.NDArray[np.float32]
"""Embeddings, one per row, each of length 1: their dot product is the cosine."""

MAX_TEXT_CHARS = 2_000
"""The sentence encoder reads 256 tokens and ignores the rest."""
MAX_EXEMPLARS = 5


@dataclass(frozen=True)
class AnsweredPrediction:
    """What was asked and answered in a prediction, cut to the size of a question.

    `occurred_at` is when; erasure and retention go by it.
    """

    prediction_id: str
    task: str
    task_revision: str
    occurred_at: datetime
    call: Call
    answer: Answer
    confidence: float | None
    user_hash: str | None


@dataclass(frozen=True)
class Suspect:
    """A prediction that may be wrong. `label` is what a person said it should have been, if one did.

    `answer` is `Answer.plain`.

    `topic`, `partition` and `offset` are the position of the event that made it a suspect: a cycle's fence goes by it.
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


def is_suspect(confidence: float | None, threshold: float) -> bool:
    """Return True for a low confidence, and for none: such an answer may be anything."""
    return confidence is None or confidence < threshold


def is_negative(feedback: FeedbackGiven) -> bool:
    """Return True if the feedback says that the answer was wrong."""
    return feedback.kind in ("edited", "label") or feedback.positive is False


def was_interrupted(answer: Answer) -> bool:
    """Return True if the client left or the model server broke off. That is nobody's mistake, so it is no suspect."""
    return answer.finish_reason in (FinishReason.CLIENT_LEFT, FinishReason.UPSTREAM_CUT)


def may_be_asked(prediction: AnsweredPrediction, purpose: Purpose) -> bool:
    """Return True if people should look at a suspect.

    At what a user called wrong, always. At what the model only doubts, if a correction could be a training row:
    people's time is the scarcest resource.
    """
    return purpose is Purpose.FEEDBACK or never_trained(prediction.call, [prediction.answer]) is None


def embedded_text(call: Call) -> str:
    """Return the part of a conversation that is embedded."""
    return input_text(call.messages)[:MAX_TEXT_CHARS]


def doubtful_predictions(event: PredictionLogged, threshold: float) -> list[AnsweredPrediction]:
    """Return the answers of a request that are suspects: each is a prediction of its own. They share one call."""
    doubtful = [a for a in event.answers if is_suspect(a.confidence.score, threshold) and not was_interrupted(a)]
    if not doubtful:
        return []
    call = bounded_call(event.call)
    return [
        AnsweredPrediction(
            answer.prediction_id, event.task, event.task_revision, event.occurred_at, call, bounded_answer(answer),
            answer.confidence.score, event.user_hash,
        )
        for answer in doubtful
    ]  # fmt: skip


def corrected_prediction(event: CorrectionSubmitted) -> AnsweredPrediction:
    return AnsweredPrediction(
        event.prediction_id, event.task, event.task_revision, event.happened_at, event.call, event.answers[0],
        None, event.user_hash,
    )  # fmt: skip


def suspect_of(prediction: AnsweredPrediction, delivery: Delivery[Any], embedding: Vectors) -> Suspect:
    """Make a suspect of a prediction because of a delivered event. The text of a user's feedback is its label."""
    return Suspect(
        prediction.prediction_id, prediction.task, prediction.task_revision, prediction.occurred_at,
        embedded_text(prediction.call), prediction.answer.plain, prediction.confidence, delivery.topic,
        delivery.partition, delivery.offset, embedding, user_hash=prediction.user_hash,
        label=delivery.event.text if isinstance(delivery.event, FeedbackGiven) else None,
    )  # fmt: skip


def same_answer(left: str, right: str) -> bool:
    return left.strip().casefold() == right.strip().casefold()


def priority(prediction: AnsweredPrediction) -> float:
    """Return how urgent a question is: the less confident, the more."""
    return 1.0 - (prediction.confidence or 0.0)


def review_question(spec: TaskSpec, prediction: AnsweredPrediction, purpose: Purpose) -> LabelRequested:
    """Return the question to people about a prediction. There is one per prediction, so its ids follow from it."""
    request_id = str(event_id("review", prediction.prediction_id))
    return LabelRequested(
        event_id=event_id("labels.requested", request_id),
        task=spec.name,
        task_revision=spec.revision,
        request_id=request_id,
        prediction_id=prediction.prediction_id,
        purpose=purpose,
        call=prediction.call,
        answers=(prediction.answer,),
        labels=spec.labels,
        priority=priority(prediction),
        overlap=2 if _sampling_point(prediction.prediction_id) < spec.failures.overlap_share else 1,
        user_hash=prediction.user_hash,
        predicted_at=prediction.occurred_at,
    )


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
    """Describe clusters as failure modes, largest first. `cluster_of[i]` is that of `suspects[i]`; -1 is noise."""
    clusters: dict[int, list[int]] = {}
    for index, number in enumerate(cluster_of):
        if number >= 0:
            clusters.setdefault(int(number), []).append(index)
    members = sorted(clusters.values(), key=lambda m: (-len(m), m))
    if not members:
        return []
    centroids = np.stack([_centroid(np.stack([suspects[i].embedding for i in m])) for m in members])
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


def _sampling_point(prediction_id: str) -> float:
    """Return a number in [0, 1) that follows from the id: a prediction is always in the same sample."""
    return int(hashlib.sha256(prediction_id.encode()).hexdigest()[:8], 16) / 2**32
