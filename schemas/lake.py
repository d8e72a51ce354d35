"""The lake's tables, a published, read-only contract. Each row model has the columns of one table.

`predictions`, `feedback` and `requests` are partitioned by task and date and hold each event once, however often it is
delivered: `predictions` a row for each answer of the event. `forgotten` holds who asked for erasure: their rows are not
in the other tables, and a reader drops its copies by it. A new column is nullable and comes last; readers ignore
columns that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime

from schemas.base import Frozen

PREDICTIONS = "predictions"
FEEDBACK = "feedback"
REQUESTS = "requests"
FORGOTTEN = "forgotten"


class PredictionRow(Frozen):
    """One answer, with the call that it answers. Answers to one request have its `request_id` and count from 0.

    `api` to `truncated` are the call's. They make the request again: `shared.conversation.call_of_row(row)` returns the
    `Call`, `replay_request(call, labels)` its path and body, and `model` is the model to ask; `answer_of_row(row)`
    returns the answer. So a row can be replayed, trained on or read in any other form.

    `messages`, `tools`, `tool_choice`, `response_format`, `parameters`, `tool_calls`, `metadata` and `surrogates` are
    compact JSON in the structure of `schemas/conversation.py`, without fields that have their default; null where there
    is none, but `{}` for no parameters and no metadata. `answer` is the answer as one text (`Answer.plain`), tool calls
    and refusal included; `text` is what was said beside them, null where there are none. `confidence` is the event's
    `confidence.score`; `confidence_raw` is the score before calibration, if any. `answer_tokens` are the answer's own;
    the other tokens, `latency_ms` and `redactions` are the request's.
    """

    prediction_id: str
    task: str
    date: date
    task_revision: str
    occurred_at: datetime
    request_id: str
    answer_number: int
    api: str
    messages: str
    tools: str | None
    tool_choice: str | None
    response_format: str | None
    parameters: str
    stream: bool
    constrained: bool
    truncated: bool
    answer: str
    text: str | None
    tool_calls: str | None
    refusal: str | None
    reasoning: str | None
    answer_truncated: bool
    finish_reason: str | None
    model: str
    adapter: str | None
    variant: str
    confidence: float | None
    confidence_raw: float | None
    logprob: float | None
    calibration: str | None
    user_hash: str | None
    session_hash: str | None
    app: str | None
    metadata: str
    gateway_version: str | None
    latency_ms: float
    prompt_tokens: int
    answer_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    redactions: int
    surrogates: str | None


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


ROWS: Mapping[str, type[Frozen]] = {
    PREDICTIONS: PredictionRow,
    FEEDBACK: FeedbackRow,
    REQUESTS: RequestRow,
    FORGOTTEN: ForgottenRow,
}
