"""The table of approaches: what each way of answering a task is worth, what it costs and how long it takes.

It travels with `adapters.evaluated`, so that people see beside a candidate what is cheaper.
"""

from __future__ import annotations

from datetime import date
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.base import AdapterName, Frozen, Identifier, Interval


class ApproachKind(StrEnum):
    CANDIDATE = "candidate"
    PRODUCTION = "production"
    BASE = "base"
    LINEAR = "linear"
    """Logistic regression on sentence embeddings."""


TITLES = {
    ApproachKind.CANDIDATE: "candidate",
    ApproachKind.PRODUCTION: "production",
    ApproachKind.BASE: "base model",
    ApproachKind.LINEAR: "linear classifier",
}
"""Kind → its name in tables that people read."""
Share = Annotated[float, Field(ge=-1.0, le=1.0)]


class Gain(Frozen):
    """A difference of two shares of the same rows, with its 95 % interval."""

    value: Share
    low: Share
    high: Share


class Approach(Frozen):
    """One row of the table, measured on rows of the evaluation set.

    Latencies of models are those of the evaluation, with its concurrency; of a classifier, one text at a time.
    """

    kind: ApproachKind
    adapter: AdapterName | None = None
    accuracy: Interval = Field(description="`n`: the rows that it was asked; the base model maybe a sample.")
    failed: int = Field(
        default=0, ge=0, description="Requests that errored or timed out: counted as wrong, and in no gain."
    )
    candidate_gain: Gain | None = Field(
        default=None,
        description="The candidate's accuracy minus this one's, on the rows that both were asked and it answered.",
    )
    examples: int = Field(default=0, ge=0, description="Training rows it was fitted on.")
    latency_ms_p50: float = Field(ge=0.0)
    latency_ms_p95: float = Field(ge=0.0)
    prompt_tokens: float = Field(default=0.0, ge=0.0, description="Mean of an answer; 0: unknown, or no model.")
    answer_tokens: float = Field(default=0.0, ge=0.0)
    cost_per_month: float | None = Field(
        default=None, ge=0.0, description="At the task's volume, in the table's currency; None: there is no volume yet."
    )


class ApproachTable(Frozen):
    """The candidate, production and the base model beside cheap rivals that had the same training set."""

    approaches: tuple[Approach, ...] = Field(min_length=1, max_length=20)
    metric: Identifier | None = Field(
        default=None,
        description="Of generated text `accuracy` is the mean score by it. None: the share that is right.",
    )
    answers_per_month: float | None = Field(default=None, ge=0.0, description="The task's volume, from the lake.")
    currency: Annotated[str, Field(max_length=3)]
    prices_of: date = Field(description="The oldest date of the prices that were used.")
    findings: tuple[Annotated[str, Field(max_length=1_000)], ...] = Field(
        default=(), max_length=10, description="What the table says, in sentences; the most important one first."
    )
