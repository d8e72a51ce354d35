"""The lake's tables: published, read-only contracts. Each row model is one table's columns.

`predictions` is partitioned by task and date and holds each prediction once, whatever the deliveries.
"""

from __future__ import annotations

from datetime import date, datetime

from schemas.base import Frozen

PREDICTIONS = "predictions"
FEEDBACK = "feedback"


class PredictionRow(Frozen):
    """One answer. `messages` is the JSON of the conversation as the model saw it."""

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
