"""What production answered, what users thought of it, and what was seen of each request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from schemas.base import Event, Frozen, Identifier, Messages, Probability, Text, Variant


class Confidence(Frozen):
    """How sure the model was, from its own token log-probabilities.

    `score` for a classification: the probability of the answered label among the task's labels, by the adapter's
    calibration where it has one; for a generation: the geometric mean of its tokens' probabilities. None: the
    upstream gave no log-probabilities. `shared/model/confidence.py` says how each is measured.
    """

    score: Probability | None = None
    logprob: float | None = Field(default=None, le=0.0, description="Sum over the answer's tokens, in nats.")
    tokens: int = Field(default=0, ge=0)
    raw: Probability | None = Field(default=None, description="The score before calibration; None: it had none.")
    margin: float | None = Field(
        default=None, ge=-1.0, le=1.0, description="Label: its probability less that of the next one, uncalibrated."
    )
    entropy: Probability | None = Field(
        default=None, description="Label: how spread the probability is; 1: all labels are as probable. Uncalibrated."
    )
    outside: Probability | None = Field(
        default=None,
        description="Label: the probability that, left free, the answer begins like none of the labels. Near 0 where "
        "the engine reports only what its constraint has left, as vLLM does.",
    )
    uncertain_share: Probability | None = Field(
        default=None, description="Generation: the share of tokens that had a probability under one half."
    )
    calibration: Identifier | None = Field(default=None, description="The calibration that made `score` of `raw`.")


class PredictionLogged(Event):
    """One answer that an application was given. Key: prediction_id."""

    prediction_id: Identifier
    messages: Messages = Field(description="The conversation exactly as the model saw it, system prompt included.")
    answer: Text
    model: Identifier = Field(description="What the upstream was asked for: the base model or an adapter's name.")
    adapter: Identifier | None = Field(default=None, description="None: the base model itself answered.")
    variant: Variant
    confidence: Confidence = Confidence()
    user_hash: Identifier | None = Field(default=None, description="Keyed hash of the application's user.")
    latency_ms: float = Field(ge=0.0)
    prompt_tokens: int = Field(default=0, ge=0)
    answer_tokens: int = Field(default=0, ge=0)
    finish_reason: Identifier | None = None
    redactions: int = Field(default=0, ge=0, description="How many pieces of personal data were replaced.")


class PredictionSubmitted(Event):
    """An answer that an application made elsewhere and sends straight to Kafka, as it is. Key: prediction_id.

    It is the one event that may hold personal data, so its topic keeps it for a day only. The gateway's shipper
    redacts it and says `PredictionLogged`; nobody else reads it. The same prediction_id again is the same fact.
    `task_revision` may be `current`: then it is the revision that the task has on arrival.
    """

    prediction_id: Identifier = Field(description="The application's own id of this answer, unique within the task.")
    messages: Messages
    answer: Text
    model: Identifier = "external"
    adapter: Identifier | None = None
    confidence: Confidence = Confidence()
    user: Identifier | None = Field(default=None, description="The application's user; stored only as a keyed hash.")
    latency_ms: float = Field(default=0.0, ge=0.0)
    prompt_tokens: int = Field(default=0, ge=0)
    answer_tokens: int = Field(default=0, ge=0)
    finish_reason: Identifier | None = None


class FeedbackGiven(Event):
    """What a user or an application said of an answer. Key: prediction_id."""

    prediction_id: Identifier
    kind: Literal["thumbs", "accepted", "edited", "label"]
    positive: bool | None = Field(default=None, description="For thumbs and accepted.")
    text: Text | None = Field(default=None, description="For edited and label: the answer as it should have been.")
    user_hash: Identifier | None = None
    redactions: int = Field(default=0, ge=0, description="How many pieces of personal data were replaced.")


class RequestObserved(Event):
    """A thin line per request, failures too, for the guards of a canary. Key: prediction_id."""

    prediction_id: Identifier
    variant: Variant
    adapter: Identifier | None = None
    user_hash: Identifier | None = None
    status: int = Field(ge=100, le=599)
    latency_ms: float = Field(ge=0.0)
    confidence: Probability | None = None


class LabelCount(Frozen):
    answer: Text
    count: int = Field(ge=0)


class LatencySketch(Frozen):
    """A DDSketch (Masson, Rim & Lee 2019) of latencies: sketches of hours add up to the sketch of a day.

    A latency of x ms > 0 is counted in bucket ceil(log_gamma(x)); a quantile read from the buckets is off by at most
    (gamma - 1) / (gamma + 1) of itself. `indexes` and `counts` are parallel, indexes ascending.
    """

    gamma: float = Field(default=1.04, gt=1.0)
    zeros: int = Field(default=0, ge=0, description="Latencies of 0 ms.")
    indexes: tuple[int, ...] = Field(default=(), max_length=2_000)
    counts: tuple[int, ...] = Field(default=(), max_length=2_000)


def merged_sketch(sketches: Iterable[LatencySketch]) -> LatencySketch:
    """The sketch of all the latencies in `sketches`. Raises ValueError if they have different buckets."""
    counts: Counter[int] = Counter()
    zeros, gammas = 0, set()
    for sketch in sketches:
        counts.update(dict(zip(sketch.indexes, sketch.counts, strict=True)))
        zeros += sketch.zeros
        gammas.add(sketch.gamma)
    if len(gammas) > 1:
        raise ValueError(f"sketches of different gammas do not add up: {sorted(gammas)}")
    indexes = sorted(counts)
    return LatencySketch(
        gamma=gammas.pop() if gammas else LatencySketch().gamma,
        zeros=zeros,
        indexes=tuple(indexes),
        counts=tuple(counts[index] for index in indexes),
    )


def sketch_quantile(sketch: LatencySketch, q: float) -> float:
    """The latency in ms below which a share `q` in [0, 1] lies (the lower of two neighbours); 0 without any."""
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
    """Counts of one hour of one variant, restated as late rows arrive: the last value wins. Key: task."""

    hour: AwareDatetime
    variant: Variant
    adapter: Identifier | None = None
    predictions: int = Field(ge=0)
    answers: tuple[LabelCount, ...] = Field(default=(), max_length=500, description="The most frequent answers.")
    confidence_histogram: Annotated[tuple[int, ...], Field(min_length=10, max_length=10)] = (0,) * 10
    latency_ms_p50: float = Field(ge=0.0)
    latency_ms_p95: float = Field(ge=0.0)
    latency: LatencySketch = LatencySketch()
    requests: int = Field(default=0, ge=0, description="Requests observed in this hour, failed ones too.")
    errors: int = Field(default=0, ge=0, description="Of them, those answered with a status of 500 or more.")


class SubjectForgotten(Event):
    """A person asked to be forgotten. Durable: applied at every replay and build. Key: task."""

    subject_hash: Identifier
