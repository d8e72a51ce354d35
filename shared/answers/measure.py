"""How sure an answer is: what is measured of it, and the measure of any text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TOP_LOGPROBS = 20
"""The most that vLLM lists by default (`--max-logprobs`)."""

Tokens = Sequence[Mapping[str, Any]]
"""OpenAI's `choices[0].logprobs.content`: token, logprob, top_logprobs."""


class ConfidenceMeasure(NamedTuple):
    """The fields of `schemas.predictions.Confidence`, for code that makes events without that class."""

    score: float | None = None
    logprob: float | None = None
    tokens: int = 0
    raw: float | None = None
    calibration: str | None = None
    fields: dict[str, float] | None = None
    threshold: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The event's field `confidence`, without the fields that are None."""
        return {name: value for name, value in zip(self._fields, self, strict=True) if value is not None}


UNKNOWN = ConfidenceMeasure()


def text_measure(logprobs: Sequence[float], total: float) -> ConfidenceMeasure:
    """The mean probability of a token. `total`: the sum of `logprobs`."""
    return ConfidenceMeasure(math.exp(total / len(logprobs)), total, len(logprobs))
