"""Accuracy on all traffic, estimated from 300 suspects and 200 audits as the failure miner draws them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.evaluator.statistics.intervals import weighted_share
from services.evaluator.statistics.traffic import traffic_sample

TRAFFIC = 20_000
SUSPECTS = 300
AUDITS = 200
THRESHOLD = 0.6
TOLD, VAGUE = (1.5, 0.25), (4.0, 1.0)
"""Beta distributions of calibrated confidence. An adapter whose confidence tells its errors, and one where it hardly
does: both are right on five to six answers of seven."""


@dataclass(frozen=True)
class Estimated:
    """Over all runs: how often intervals cover the truth, the median ratio of their widths, and mean errors."""

    covered: float
    audit_covered: float
    width_ratio: float
    bias: float
    suspects_bias: float
    errors_suspected: float


def estimate(runs: int, confidence: tuple[float, float], seed: int = 3) -> Estimated:
    """Draw the samples from one day's traffic in each run, and estimate its accuracy from both."""
    covered, audit_covered, ratios, errors, suspects, held = [], [], [], [], [], []
    for run in range(runs):
        chance = np.random.default_rng([seed, run])
        sure = chance.beta(*confidence, size=TRAFFIC)
        right = (chance.random(TRAFFIC) < sure).astype(np.float64)
        doubtful = sure < THRESHOLD
        audit_rate = AUDITS / TRAFFIC
        rate = SUSPECTS / (float(doubtful.sum()) * (1.0 - audit_rate))
        audited = chance.random(TRAFFIC) < audit_rate
        asked = ~audited & doubtful & (chance.random(TRAFFIC) < rate)
        drawn = np.where(doubtful, 1.0 - (1.0 - audit_rate) * (1.0 - rate), audit_rate)

        labelled = np.flatnonzero(audited | asked)
        sample = traffic_sample(drawn[labelled], audited[labelled])
        assert sample is not None
        judged, truth = right[labelled][sample.positions], float(right.mean())
        found = weighted_share(judged, sample.weights, np.arange(len(judged)))
        audits = right[audited]
        alone = weighted_share(audits, np.ones(len(audits)), np.arange(len(audits)))
        covered.append(found.low <= truth <= found.high)
        audit_covered.append(alone.low <= truth <= alone.high)
        ratios.append((found.high - found.low) / (alone.high - alone.low))
        errors.append(found.value - truth)
        held.append(float((1.0 - right)[doubtful].sum() / (1.0 - right).sum()))
        suspects.append(float(right[asked].mean()) - truth)
    return Estimated(
        float(np.mean(covered)),
        float(np.mean(audit_covered)),
        float(np.median(ratios)),
        float(np.mean(errors)),
        float(np.mean(suspects)),
        float(np.mean(held)),
    )
