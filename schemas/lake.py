"""The lake's tables: published, read-only contracts. Each row model is one table's columns.

`predictions`, `feedback` and `requests` are partitioned by task and date and hold each fact once, whatever the
deliveries. `forgotten` holds who asked to be forgotten: what is theirs is not in the other tables, and a reader that
kept copies drops them by it. A new column is nullable and comes last; readers ignore what they do not know.
"""

from __future__ import annotations

from datetime import date, datetime

from schemas.base import Frozen

PREDICTIONS = "predictions"
FEEDBACK = "feedback"
REQUESTS = "requests"
FORGOTTEN = "forgotten"


class PredictionRow(Frozen):
    """One answer. `messages` is the JSON of the conversation as the model saw it.

    `confidence` is the event's `confidence.score`, `confidence_raw` the same before calibration where there is one.
    """

    prediction_id: str
    task: str
    date: date
    task_revision: str
    occurred_at: datetime
    messages: str
    answer: str
    model: str
    adapter: str | None
    variant: str
    confidence: float | None
    logprob: float | None
    user_hash: str | None
    latency_ms: float
    prompt_tokens: int
    answer_tokens: int
    finish_reason: str | None
    redactions: int | None
    confidence_raw: float | None
    margin: float | None
    entropy: float | None
    outside: float | None
    uncertain_share: float | None
    calibration: str | None


class FeedbackRow(Frozen):
    """One piece of feedback."""

    event_id: str
    prediction_id: str
    task: str
    date: date
    occurred_at: datetime
    kind: str
    positive: bool | None
    text: str | None
    user_hash: str | None
    redactions: int | None


class RequestRow(Frozen):
    """One request as the gateway saw it, failed ones too; no text."""

    event_id: str
    prediction_id: str
    task: str
    date: date
    task_revision: str
    occurred_at: datetime
    variant: str
    adapter: str | None
    user_hash: str | None
    status: int
    latency_ms: float
    confidence: float | None


class ForgottenRow(Frozen):
    """Who asked to be forgotten, in which task. Not partitioned."""

    task: str
    subject_hash: str
    occurred_at: datetime
