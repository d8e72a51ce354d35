"""What the rows that chance drew say of all traffic.

Most labelled rows are suspects, so accuracy on them is not production's. But the questions to people are Poisson
samples whose probabilities were fixed beforehand: of all traffic (audits), and of answers that looked wrong. Each row
weighs one over the probability that either sample drew it (Horvitz & Thompson 1952) and that somebody answered, by the
response rate of each sample. Rows that people chose themselves, users' complaints for example, have no such probability
and say nothing of traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.evaluator.statistics.intervals import Floats

MIN_UNIFORM = 30
"""Fewer rows of samples that any answer could come into do not stand for the answers that nobody suspected."""


@dataclass(frozen=True)
class TrafficSample:
    """The positions of the rows that chance drew, and their weights, of mean 1."""

    positions: NDArray[np.intp]
    weights: Floats

    @property
    def effective(self) -> float:
        """The number of rows of equal weight that say as much (Kish 1965)."""
        return float(self.weights.sum() ** 2 / (self.weights @ self.weights))


def traffic_sample(probabilities: Floats, is_uniform: NDArray[np.bool_]) -> TrafficSample | None:
    """Return the sample of traffic among rows; None where it says too little.

    `probabilities`: with which each row was drawn, by any sample; NaN: not by chance. `is_uniform`: drawn by a sample
    of answers that nobody suspected, too.
    """
    drawn = np.flatnonzero(~np.isnan(probabilities))
    if int(is_uniform[drawn].sum()) < MIN_UNIFORM:
        return None
    weights = 1.0 / probabilities[drawn]
    return TrafficSample(drawn, weights / weights.mean())
