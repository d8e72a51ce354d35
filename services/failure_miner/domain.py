"""The rules of who is a suspect, who may be asked about, and what people are asked. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.conversation import Answer, Call, FinishReason, input_text
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import Confidence, FeedbackGiven, LoggedAnswer, PredictionLogged
from schemas.task_settings import FailureSettings
from schemas.tasks import TaskSpec
from services.failure_miner.sampling import (
    BANDS,
    FEEDBACK,
    USUAL_THRESHOLD,
    ReviewQuestion,
    Sighting,
    sampling_point,
    stratum_of,
)
from shared.answers import answer_form
from shared.conversation import bounded_answer, bounded_call, never_trained
from shared.identity import event_id
from shared.kafka.delivery import Delivery
from shared.storage.predictions import AnsweredPrediction

Vectors = npt.NDArray[np.float32]
"""Embeddings, one per row, each of length 1: their dot product is the cosine."""

WORDS_OF_ANOTHER = "(words of another user)"
"""The label of a suspect that a reviewer has given it in what may be the words of somebody else than its user."""
MAX_TEXT_CHARS = 2_000
"""The sentence encoder reads 256 tokens and ignores the rest."""
_INTERRUPTIONS = (FinishReason.CLIENT_LEFT, FinishReason.UPSTREAM_CUT, FinishReason.GATEWAY_STOPPED)
_UNREADABLE = frozenset({"truncated", "token_ids", "media"})
"""Reasons of `never_trained` for which a person cannot judge an answer: the question lacks a part of it."""

_PRIORITY = {Purpose.FEEDBACK: 1.75, Purpose.AUDIT: 1.5, Purpose.LOW_CONFIDENCE: 0.5, Purpose.UNCALIBRATED: 0.5}
"""How urgent a question is; pairs and third opinions have 2. All questions of a random sample are equally urgent: if
people get through half of them only, those are random, too, and labels are weighed by the share that was answered."""


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


def is_suspect(confidence: Confidence, rules: FailureSettings) -> bool:
    """Return True for a low confidence with which an answer is probably wrong, or as the task's own threshold says.

    Without a calibration a confidence means nothing, so it makes no suspect. Low by the adapter's threshold may be an
    answer that is probably right: people are asked about it, and it is no member of a failure mode unless they say so.
    """
    probably_wrong = rules.confidence_threshold is not None or (confidence.score or 0.0) < USUAL_THRESHOLD
    return probably_wrong and stratum_of(confidence, rules) in BANDS


def is_negative(feedback: FeedbackGiven) -> bool:
    """Return True if the feedback says that the answer was wrong."""
    return feedback.kind in ("edited", "label") or feedback.positive is False


def is_same(label: str, answer: str, spec: TaskSpec) -> bool:
    """Return True if what somebody said that an answer should have been is that answer."""
    form = answer_form(spec)
    return form.same(form.from_user(label), answer)


def confirms(feedback: FeedbackGiven, answer: Answer, spec: TaskSpec) -> bool:
    """Return True if what a user wrote is the answer itself, as where an application sends the label of every case."""
    return feedback.text is not None and is_same(feedback.text, answer.plain, spec)


def was_interrupted(answer: Answer) -> bool:
    """Return True if the client left, or a server broke off. That is no mistake of the model, so it is no suspect."""
    return answer.finish_reason in _INTERRUPTIONS


def seen_by_sampling(event: PredictionLogged, spec: TaskSpec) -> list[Sighting]:
    """Return the answers of a request that people may be asked about. None of another revision of the task.

    The audit asks about all that a person can judge. The other samples ask about what may become a training row:
    people's time is the scarcest resource.
    """
    if event.task_revision != spec.revision:
        return []
    seen = []
    for answer in event.answers:
        if was_interrupted(answer):
            continue
        reason = never_trained(event.call, [answer])
        stratum = stratum_of(answer.confidence, spec.failures) if reason is None else None
        auditable = reason is None or reason[0] not in _UNREADABLE
        if auditable:
            seen.append(
                Sighting(
                    answer.prediction_id,
                    event.task,
                    event.task_revision,
                    event.occurred_at,
                    event.user_hash,
                    stratum,
                    True,
                )
            )
    return seen


def counted_since(spec: TaskSpec, until: datetime) -> datetime | None:
    """Return from when on both the questions and their answers are stored: each have an age limit of their own."""
    limits = [days for days in (spec.retention_days, spec.dataset.max_age_days) if days is not None]
    return until - timedelta(days=min(limits)) if limits else None


def called_wrong(prediction: AnsweredPrediction, spec: TaskSpec) -> list[Sighting]:
    """Return a prediction that a user called wrong. People are asked about it, also if it is never trained on."""
    if prediction.task_revision != spec.revision:
        return []
    return [
        Sighting(
            prediction.prediction_id, prediction.task, prediction.task_revision, prediction.occurred_at,
            prediction.user_hash, FEEDBACK, auditable=False,
        )
    ]  # fmt: skip


def embedded_text(call: Call) -> str:
    """Return the part of a conversation that is embedded."""
    return input_text(call.messages)[:MAX_TEXT_CHARS]


def chosen_predictions(event: PredictionLogged, choose: Callable[[LoggedAnswer], bool]) -> list[AnsweredPrediction]:
    """Return the chosen answers of a request: each is a prediction of its own. They share one call."""
    chosen = [answer for answer in event.answers if choose(answer)]
    if not chosen:
        return []
    call = bounded_call(event.call)
    return [
        AnsweredPrediction(
            answer.prediction_id, event.task, event.task_revision, event.occurred_at, call, bounded_answer(answer),
            answer.confidence.score, event.user_hash, event.app, event.session_hash,
        )
        for answer in chosen
    ]  # fmt: skip


def doubtful_predictions(event: PredictionLogged, rules: FailureSettings) -> list[AnsweredPrediction]:
    """Return the answers of a request that are suspects."""
    return chosen_predictions(event, lambda a: is_suspect(a.confidence, rules) and not was_interrupted(a))


def looked_up_prediction(found: AnsweredPrediction) -> AnsweredPrediction:
    """Return a prediction of the lake, cut to the size of a question."""
    return replace(found, call=bounded_call(found.call), answer=bounded_answer(found.answer))


def corrected_prediction(event: CorrectionSubmitted) -> AnsweredPrediction:
    return AnsweredPrediction(
        event.prediction_id, event.task, event.task_revision, event.happened_at, event.call, event.answers[0],
        None, event.user_hash, event.app, event.session_hash,
    )  # fmt: skip


def suspect_of(prediction: AnsweredPrediction, delivery: Delivery[Any], embedding: Vectors) -> Suspect:
    """Make a suspect of a prediction because of a delivered event. The text of a user's feedback is its label.

    Where only the feedback names the user, the suspect is theirs, so that it is found when they ask to be forgotten. Of
    who writes about another's answer no text is kept: an erasure finds a suspect by one person.
    """
    given = delivery.event if isinstance(delivery.event, FeedbackGiven) else None
    user_hash = prediction.user_hash or (given.user_hash if given else None)
    is_own = given is not None and given.user_hash in (None, user_hash)
    return Suspect(
        prediction.prediction_id, prediction.task, prediction.task_revision, prediction.occurred_at,
        embedded_text(prediction.call), prediction.answer.plain, prediction.confidence, delivery.topic,
        delivery.partition, delivery.offset, embedding, user_hash=user_hash,
        label=given.text if given is not None and is_own else None,
    )  # fmt: skip


def review_question(
    spec: TaskSpec, prediction: AnsweredPrediction, question: ReviewQuestion, feedback: FeedbackGiven | None = None
) -> LabelRequested:
    """Return the question to people about a prediction. Its ids follow from the prediction's.

    The audit's have ids of their own: a complaint that was asked about before must not take one out of the sample. And
    they do not say what the user wrote (`feedback`), since reviewers are to judge all audited answers alike.
    """
    is_audit = question.purpose is Purpose.AUDIT
    wrote = None if feedback is None or is_audit else feedback.text
    kind = "audit" if is_audit else "review"
    request_id = str(event_id(kind, prediction.prediction_id))
    author = None if feedback is None or wrote is None else feedback.user_hash
    user_hash = prediction.user_hash or (feedback.user_hash if feedback is not None else None)
    is_overlap = sampling_point("overlap", prediction.prediction_id) < spec.failures.overlap_share
    return LabelRequested(
        event_id=event_id("labels.requested", request_id, *([] if wrote is None else [wrote])),
        task=spec.name,
        task_revision=spec.revision,
        request_id=request_id,
        prediction_id=prediction.prediction_id,
        purpose=question.purpose,
        call=prediction.call,
        answers=(prediction.answer,),
        labels=spec.choices,
        priority=_PRIORITY[question.purpose],
        suggestion=wrote,
        suggestion_surrogates=feedback.surrogates if feedback is not None and wrote is not None else (),
        suggested_by=None if author == user_hash else author,
        inclusion_probability=question.inclusion_probability,
        drawn_probability=question.drawn_probability,
        overlap=2 if is_overlap else 1,
        app=prediction.app,
        session_hash=prediction.session_hash,
        user_hash=user_hash,
        predicted_at=prediction.occurred_at,
    )
