"""The canary's guards: evidence that it serves users worse than the primary, valid however often one looks. Pure.

- errors, negative feedback, wrong answers in the audit: subjects with such an event, in the arm of the first one. Null:
  the canary's are at most what its share of subjects gives at `ratio` times the primary's rate.
- slow answers, over 1.2 times the primary's p95 before the canary, or whose client left before their end: the smaller
  one of two. One request of a subject and day, and none of a subject after its first slow one, null: at most 5 % are so
  slow; of whoever was never slow hardly more are than of all, however much subjects differ. And subjects with such an
  answer, in the arm of the first one, null as for errors.
- after a promotion, labels of fresh pairs: the bet against the candidate (`betting.py`). Null: it is not worse.

Each is a binomial mixture (`betting.canary_guard`; Robbins 1970, Lindon et al. 2022), whose expectation under the null
is at most 1 at any time. So is that of a weighted mean of them, whatever they have to do with each other (Vovk & Wang
2021, "E-values"): together they reach 20 with probability at most .05 (Ville), and each alone ends a healthy canary
with at most its share of that. In the time of control after a promotion the same evidence goes
on, so that canary and control spend the .05 together.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from scipy.stats import binom

from services.deployer.statistics.betting import canary_guard

LIMIT = 20.0
"""Evidence of all guards together at which a canary ends: .05."""
SLOW = 1.2
"""A canary may be so many times slower than the primary's 95th percentile."""
SLOW_SHARE = 0.05
"""The share of the primary's requests that are over its 95th percentile."""
MEASURED_REQUESTS = 2_000
"""As many of the primary's requests are measured; their percentile is then known to half a point."""
_DOUBT = 0.01
"""The probability that the frozen percentile is below the true one."""


class Guard(StrEnum):
    """What a canary is ended for. The value is a noun in the reason that an operator reads."""

    ERRORS = "errors"
    LATENCY = "slow answers"
    FEEDBACK = "negative feedback"
    CORRECTIONS = "wrong answers in the audit"
    LABELS = "labels since the promotion"


_WEIGHT = 0.2
"""Of each guard. What they leave of 1 stays on an evidence of 1."""


def excess(events: int, total: int, null: float) -> float:
    """Return the evidence that such events are more frequent than `null`, a probability, among `total`; 1 of none."""
    return canary_guard(events, total, null, 1.0)


def together(evidence: Mapping[Guard, float]) -> float:
    """Return the evidence of all guards. It reaches `LIMIT` for a healthy canary with probability at most .05."""
    return 1.0 - _WEIGHT * len(evidence) + _WEIGHT * sum(evidence.values())


def percentile_rank(measured: int, share: float = 1 - SLOW_SHARE) -> int | None:
    """Return which of so many values, counted from 1 and ascending, is at least the true quantile; None: too few.

    It is a distribution-free upper confidence limit of 99 %: k with P(Binomial(measured, share) >= k) <= .01
    (Hahn & Meeker 1991, 5.2.2). Without it, a percentile of few values is too low half of the time.
    """
    rank = int(binom.isf(_DOUBT, measured, share)) + 1 if measured else 1
    return rank if rank <= measured else None
