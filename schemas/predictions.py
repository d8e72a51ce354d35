"""Events about production: answers, users' feedback, requests, hourly roll-ups and erasure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, JsonValue

from schemas.base import Count, Event, Frozen, Identifier, Probability, ShortText, Text, Variant
from schemas.conversation import Answer, Call, JsonObject, Messages, Surrogates, ToolCall
from schemas.output_schema import MAX_FIELDS, FieldPath


class Confidence(Frozen):
    """How sure the model was, computed from the log-probabilities of its tokens.

    `score` of a classification is the probability of the answered label among the task's labels; of several labels,
    that of the whole list; of an extraction, the probability of its least sure field; of calls, that of their least
    sure function or argument; of a generation, the geometric mean of its tokens' probabilities; None where the upstream
    reported no log-probabilities. It is calibrated, and `fields` are not, where the adapter has a calibration: then it
    is how often such whole answers are right.
    `shared/model/confidence.py` says how each field is computed.
    """

    score: Probability | None = None
    logprob: float | None = Field(default=None, le=0.0, description="Sum over the answer's tokens, in nats.")
    tokens: Count = 0
    raw: Probability | None = Field(default=None, description="The score before calibration; None without one.")
    fields: dict[FieldPath, Probability] | None = Field(
        default=None,
        max_length=MAX_FIELDS,
        description="Extraction, tools and several labels: the probability of each field, function, argument or label "
        "that the answer has.",
    )
    calibration: Identifier | None = Field(default=None, description="The calibration that turned `raw` into `score`.")
    threshold: Probability | None = Field(
        default=None, description="The calibration's of low confidence: of a `score` at or below it. None: it has none."
    )


class LoggedAnswer(Answer):
    """One answer to a request: a prediction."""

    prediction_id: Identifier
    confidence: Confidence = Confidence()
    tokens: Count = 0


class Usage(Frozen):
    """Tokens of a request: all answers together. `cached_tokens` are a part of the prompt's, `reasoning_tokens` of the
    answers'."""

    prompt_tokens: Count = 0
    answer_tokens: Count = 0
    cached_tokens: Count = 0
    reasoning_tokens: Count = 0


MAX_METADATA = 16
"""Entries of `metadata`: OpenAI's limit."""
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=MAX_METADATA)
]


class PredictionLogged(Event):
    """An application's request was answered: the conversation once, with all its answers. Key: request_id."""

    request_id: Identifier
    call: Call
    answers: Annotated[tuple[LoggedAnswer, ...], Field(min_length=1, max_length=128)]
    model: Identifier = Field(description="The model requested from the upstream: the base model or an adapter's name.")
    adapter: Identifier | None = Field(default=None, description="None: the base model answered.")
    variant: Variant
    usage: Usage = Usage()
    user_hash: Identifier | None = Field(default=None, description="Keyed hash of the application's user.")
    session_hash: Identifier | None = Field(default=None, description="Keyed hash of the conversation's id.")
    subject: Identifier | None = Field(
        default=None,
        description="Whom shadow and a canary take the request to be from: the user's hash, else the session's, else a "
        "keyed hash of the application and the conversation's first user message, made before redaction. None for an "
        "answer made elsewhere.",
    )
    app: Identifier | None = Field(default=None, description="The application: the name of its API key.")
    metadata: Metadata = Field(default_factory=dict, description="What the application sent with the request.")
    gateway_version: Identifier | None = None
    latency_ms: float = Field(ge=0.0)
    redactions: Count = Field(default=0, description="How many pieces of personal data were replaced.")


OwnId = Annotated[str, Field(min_length=1, max_length=500)]
"""An application's own id of an answer, a user or a conversation, of which only a keyed hash is stored."""


class PredictionSubmitted(Event):
    """An application submitted an answer that it made elsewhere, directly to Kafka. Key: prediction_id.

    It is the only event that is never redacted, so its topic's retention is a day. The gateway's shipper, its only
    consumer, redacts it and publishes `PredictionLogged`. The same prediction_id again is the same prediction, also
    where it came by HTTP. `task_revision` may be `current`: the revision that the task has on arrival.
    """

    prediction_id: OwnId = Field(
        description="The application's own id of the answer, unique within the task: stored as a keyed hash only. "
        "Feedback names it as `<task>/<prediction_id>`."
    )
    messages: Messages
    answer: Text = ""
    tool_calls: tuple[ToolCall, ...] = Field(default=(), description="Of the answer.")
    refusal: Text | None = None
    reasoning: Text | None = None
    tools: tuple[JsonObject, ...] = ()
    tool_choice: JsonValue = None
    response_format: JsonValue = None
    parameters: JsonObject = Field(default_factory=dict, description="Temperature and the like, as in `Call`.")
    model: Identifier = "external"
    adapter: Identifier | None = None
    confidence: Confidence = Confidence()
    user: OwnId | None = Field(default=None, description="The application's user; stored as a keyed hash only.")
    session: OwnId | None = Field(default=None, description="The conversation's id; stored as a keyed hash only.")
    app: Identifier | None = None
    metadata: Metadata = Field(default_factory=dict)
    latency_ms: float = Field(default=0.0, ge=0.0, le=1e9)
    prompt_tokens: Count = 0
    answer_tokens: Count = 0
    finish_reason: Identifier | None = None


class FeedbackGiven(Event):
    """A user or an application gave feedback on an answer. Key: prediction_id."""

    prediction_id: Identifier
    kind: Literal["thumbs", "accepted", "edited", "label"]
    positive: bool | None = Field(default=None, description="For thumbs and accepted.")
    text: Text | None = Field(default=None, description="For edited and label: the answer as it should have been.")
    user_hash: Identifier | None = None
    redactions: Count = Field(default=0, description="How many pieces of personal data were replaced.")
    surrogates: Surrogates = Field(default=(), description="What stands in their place.")


CLIENT_LEFT = 499
"""The status, as in nginx, of a request whose client disconnected before its answer had ended."""
GATEWAY_STOPPED = 503
"""The status of a request that the gateway broke off, because it had to stop. See `RequestObserved.gateway_stopped`."""


class RequestObserved(Event):
    """A request was answered or failed: what a canary's guards need of it, without text. Key: prediction_id."""

    prediction_id: Identifier = Field(description="Of the first answer, or of the one that would have been.")
    variant: Variant
    adapter: Identifier | None = None
    user_hash: Identifier | None = None
    subject: Identifier | None = Field(default=None, description="Whom it is taken to be from, as `PredictionLogged`.")
    status: int = Field(ge=100, le=599)
    gateway_stopped: bool = Field(
        default=False,
        description="The gateway broke it off, because it had to stop: an error for its user, which says nothing "
        "about the arm.",
    )
    latency_ms: float = Field(ge=0.0)
    confidence: Probability | None = None


class LabelCount(Frozen):
    answer: ShortText
    count: int = Field(ge=0)


class LatencySketch(Frozen):
    """A DDSketch (Masson, Rim & Lee 2019) of latencies, which can be merged: hours add up to a day.

    A latency of x ms > 0 is counted in bucket ceil(log_gamma(x)); the relative error of a quantile is at most
    (gamma - 1) / (gamma + 1). `indexes`, ascending, and `counts` are parallel.
    """

    gamma: float = Field(default=1.04, gt=1.0)
    zeros: int = Field(default=0, ge=0, description="Latencies of 0 ms.")
    indexes: tuple[int, ...] = Field(default=(), max_length=2_000)
    counts: tuple[int, ...] = Field(default=(), max_length=2_000)


def sketch_quantile(sketch: LatencySketch, q: float) -> float:
    """Return the `q`-quantile in ms, `q` in [0, 1] (the lower of two neighbours); 0 for an empty sketch."""
    if not sketch.counts:
        return 0.0
    rank = q * (sketch.zeros + sum(sketch.counts) - 1)
    below, bucket = sketch.zeros, None
    for index, count in zip(sketch.indexes, sketch.counts, strict=True):
        if rank < below:
            break
        below, bucket = below + count, index
    return 0.0 if bucket is None else 2.0 * sketch.gamma**bucket / (sketch.gamma + 1.0)


class PredictionsRolledUp(Event):
    """One hour of one variant was counted, again whenever late rows arrive: the last value wins. Key: task."""

    hour: AwareDatetime
    variant: Variant
    adapter: Identifier | None = None
    predictions: int = Field(ge=0)
    answers: tuple[LabelCount, ...] = Field(default=(), max_length=500, description="The most frequent answers.")
    confidence_histogram: Annotated[tuple[int, ...], Field(min_length=10, max_length=10)] = (0,) * 10
    latency_ms_p50: float = Field(ge=0.0)
    latency_ms_p95: float = Field(ge=0.0)
    latency: LatencySketch = LatencySketch()
    requests: int = Field(default=0, ge=0, description="Requests in this hour, including failed ones.")
    errors: int = Field(default=0, ge=0, description="Requests answered with a status of 500 or more.")


class SubjectForgotten(Event):
    """A user asked for erasure. Every consumer applies it again whenever it reads old records. Key: task."""

    subject_hash: Identifier
