"""The lake's tables, a published, read-only contract. Each row model has the columns of one table.

`predictions`, `feedback` and `requests` are partitioned by task and date and hold each event once, however often it is
delivered. `forgotten` holds who asked for erasure: their rows are not in the other tables, and a reader drops its
copies by it. A new column is nullable and comes last; readers ignore columns that they do not know.
"""

from __future__ import annotations

from datetime import date, datetime

from schemas.base import Frozen

PREDICTIONS = "predictions"
FEEDBACK = "feedback"
REQUESTS = "requests"
FORGOTTEN = "forgotten"


class PredictionRow(Frozen):
    """One answer. `messages` is the JSON of the conversation as the model received it.

    `confidence` is the event's `confidence.score`; `confidence_raw` is the score before calibration, if any.
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
    """One request at the gateway, whether it succeeded or failed; without text."""

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
    """A user of a task who asked for erasure. Not partitioned."""

    task: str
    subject_hash: str
    occurred_at: datetime
