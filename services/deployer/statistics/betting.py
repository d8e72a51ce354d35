"""The betting test: the wealth of a candidate as a function of its labelled pairs. Pure.

A pair's outcome X is -1 (the candidate was worse), 0 or 1; the mean of several people's answers lies between. Under
the null E[X] <= m the wealth of a fixed mixture of bets is a supermartingale, so it reaches 1/alpha, at *any* time,
with probability at most alpha (Ville 1939; Waudby-Smith & Ramdas 2024). Three rules keep that true in practice:

- every bet's lambda is constant, so wealth does not depend on the order in which labels arrive;
- a ticket without a label counts as the worst case, so slow or missing labels cannot help a candidate;
- the statistic is the maximum of the wealth over ticket prefixes, in the order in which tickets were drawn.

The deployer tests superiority (margin 0), harm and futility. Other margins give bounds of the gain (`bounds.py`) and
non-inferiority (`non_inferiority.py`), where pairs that agree count too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_GRID = (np.arange(20) + 0.5) / 20
_WEIGHTS = _GRID**3 * (1 - _GRID) ** 7
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())
_MAX_LOG = 700.0

FUTILITY_ODDS = 10.0
"""Odds against a candidate at which it is rejected. Not binding: stopping early can only lose power."""
HARM_WEALTH = 20.0
"""Wealth of the opposite bet (the candidate is worse) at which it is rejected: alpha = 0.05."""


def wealth(wins: float, ties: float, losses: float, margin: float = 0.0) -> float:
    """Return the wealth of these counts: the mixture over lambda of (1+l(1-m))^wins (1-lm)^ties (1-l(1+m))^losses."""
    return float(wealths(wins, ties, losses, margin))


def wealths(wins: npt.ArrayLike, ties: npt.ArrayLike, losses: npt.ArrayLike, margin: float = 0.0) -> Floats:
    """Return the wealth of many counts at once; the arrays are broadcast against each other."""
    bets = _bets(margin)
    won, tied, lost = (np.asarray(count, dtype=float)[..., None] for count in (wins, ties, losses))
    logs = won * np.log1p(bets * (1 - margin)) + lost * np.log1p(-bets * (1 + margin))
    if margin:
        logs = logs + tied * np.log1p(-bets * margin)
    return _mixture(logs)


def wealth_of_outcomes(outcomes: Sequence[float | None], agreeing: int, margin: float, pending: float = -1.0) -> float:
    """Return the wealth against this margin of these tickets and so many pairs that agree, as they stand.

    -1 < margin < 1. No maximum over prefixes: the ledger counts pairs that agree, it does not order them.
    """
    bets = _bets(margin)
    x, times = np.unique([pending if x is None else x for x in outcomes] + [0.0], return_counts=True)
    times = times + np.where(x == 0.0, agreeing - 1, 0)
    return float(_mixture((times[:, None] * np.log1p(np.outer(x - margin, bets))).sum(axis=0)))


def max_wealth(outcomes: Sequence[float | None], pending: float = -1.0, margin: float = 0.0) -> float:
    """Return the test's statistic: the maximum of the wealth over ticket prefixes, at least 1.

    `outcomes` are in ticket order; None: no label yet, which counts as `pending`. An outcome between -1 and 1 (people
    disagreed) has the factor 1 + lambda (X - m) like any other.
    """
    if not outcomes:
        return 1.0
    x = np.array([pending if outcome is None else outcome for outcome in outcomes], dtype=float)
    logs = np.cumsum(np.log1p(np.outer(x - margin, _bets(margin))), axis=0)
    return max(1.0, float(_mixture(logs).max()))


def prefix_wealths(x: Floats, means: Floats, ties: npt.ArrayLike, mean: float) -> Floats:
    """Return the wealth before each ticket and after the last, (n + 1,), at means of the null of at most 0.

    x, means: outcome and mean of each ticket, (n,). ties: how many more outcomes of 0, whose mean is `mean`, there are
    by then, (n + 1,).
    """
    logs = np.cumsum(np.log1p(np.outer(x - means, _GRID)), axis=0)
    logs = np.concatenate([np.zeros((1, len(_GRID))), logs])
    return _mixture(logs + np.outer(np.asarray(ties, dtype=float), np.log1p(-_GRID * mean)))


def wealth_now(outcomes: Sequence[float]) -> float:
    """Return the wealth of these labels alone, as it stands: no running maximum, no ticket that is pending.

    No test: what was reached once is proof for ever. It tells whether later labels still speak for the candidate.
    """
    x = np.array(outcomes, dtype=float)
    return float(_mixture(np.log1p(np.outer(x, _bets(0.0))).sum(axis=0)))


def futility(outcomes: Sequence[float | None]) -> float:
    """Return the odds that the candidate wins 40-50 % of decisive pairs, against 60 %; pending tickets count as wins.

    It is the maximum over ticket prefixes of 1/2 sum over theta in {.4, .5} of (theta/.6)^wins ((1-theta)/.4)^losses.
    """
    x = np.array([1.0 if outcome is None else outcome for outcome in outcomes])
    wins, losses = np.cumsum(np.maximum(x, 0.0)), np.cumsum(np.maximum(-x, 0.0))
    return float(futility_odds(wins, losses).max(initial=1.0))


def futility_odds(wins: Floats, losses: Floats) -> Floats:
    """Return the odds of `futility` at these counts alone."""
    at_40, at_50 = (wins * math.log(theta / 0.6) + losses * math.log((1 - theta) / 0.4) for theta in (0.4, 0.5))
    return np.asarray((np.exp(np.minimum(at_40, _MAX_LOG)) + np.exp(np.minimum(at_50, _MAX_LOG))) / 2)


def canary_guard(bad_canary: npt.ArrayLike, bad: npt.ArrayLike, share: npt.ArrayLike, ratio: float) -> float:
    """Return the evidence that the canary fails over `ratio` times as often as the primary. 20 is significant at 5 %.

    bad: users with a failed request, each counted in the arm of the first one; bad_canary of them were in the canary,
    while it had `share` of all users: numbers, or arrays with an element for each share that it has had.

    Under the null the canary's share among those is at most p0 = p r / (p r + 1 - p), so with the alternative
    q = p0 + (1 - p0) g a user multiplies the evidence by q / p0 = 1 + g (1 - p0) / p0 in the canary, by
    (1 - q) / (1 - p0) = 1 - g elsewhere, on average by 1 at most. The share that holds is known before the user's arm,
    so the product over all of them is a supermartingale whatever the shares were, and so is its mean over g, which is
    the same for all shares (Lindon et al. 2022). A share taken too great spares the canary: the first factor falls with
    p, the second does not depend on it.
    """
    in_canary, total, p = (np.atleast_1d(np.asarray(counts, dtype=float)) for counts in (bad_canary, bad, share))
    null = p * ratio / (p * ratio + 1 - p)
    logs = in_canary[:, None] * np.log1p(np.outer((1 - null) / null, _GRID))
    logs = logs + (total - in_canary)[:, None] * np.log1p(-_GRID)
    return float(np.exp(np.minimum(_log_sum(logs.sum(axis=0) - math.log(len(_GRID))), _MAX_LOG)))


def _bets(margin: float) -> Floats:
    return _GRID / (1 + margin) if margin > 0 else _GRID


def _mixture(logs: Floats) -> Floats:
    """Return the mixture's wealth from the log wealth of each bet (last axis: lambda), capped below a float's limit."""
    return np.exp(np.minimum(_log_sum(logs + _LOG_WEIGHTS), _MAX_LOG))


def _log_sum(logs: Floats) -> Floats:
    top = logs.max(axis=-1, keepdims=True)
    return np.asarray(top[..., 0] + np.log(np.exp(logs - top).sum(axis=-1)))
