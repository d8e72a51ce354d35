"""The formulas of promotion, written down a second time from their definitions, in plain arithmetic.

W = sum over j = 0...19 of w_j times the product of 1 + l_j X, with l_j = (j + 1/2) / 20 and w_j ~ l_j^3 (1 - l_j)^7.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

_LAMBDAS = [(j + 0.5) / 20 for j in range(20)]
_TOTAL = sum(x**3 * (1 - x) ** 7 for x in _LAMBDAS)
_WEIGHTS = [x**3 * (1 - x) ** 7 / _TOTAL for x in _LAMBDAS]
YEAR = 365 * 24 * 3600.0
LEAST_DRAW = 1e-9


def wealth(outcomes: Iterable[float]) -> float:
    """Return the wealth of these outcomes as they stand."""
    found = list(outcomes)
    return sum(w * math.prod(1 + x * outcome for outcome in found) for w, x in zip(_WEIGHTS, _LAMBDAS, strict=True))


def max_wealth(outcomes: Sequence[float]) -> float:
    """Return the greatest wealth of any prefix, the empty one included."""
    products = list(_WEIGHTS)
    greatest = 1.0
    for outcome in outcomes:
        products = [p * (1 + x * outcome) for p, x in zip(products, _LAMBDAS, strict=True)]
        greatest = max(greatest, sum(products))
    return greatest


def max_futility(outcomes: Sequence[float]) -> float:
    """Return the greatest odds, over prefixes, of 40 or 50 % wins against 60 %."""
    wins = losses = 0.0
    greatest = 1.0
    for outcome in outcomes:
        wins, losses = wins + max(outcome, 0.0), losses + max(-outcome, 0.0)
        odds = sum((theta / 0.6) ** wins * ((1 - theta) / 0.4) ** losses for theta in (0.4, 0.5)) / 2
        greatest = max(greatest, odds)
    return greatest


def draw(yearly: float, cycles: int, earlier: Sequence[tuple[float, float]], at: float) -> float:
    """Return what a candidate may draw at a moment. `earlier`: moments and amounts of the task's draws."""
    share = yearly / cycles
    accrued = share if not earlier else min(share, yearly * (at - max(moment for moment, _ in earlier)) / YEAR)
    left = yearly - sum(amount for moment, amount in earlier if at - moment < YEAR)
    return max(min(accrued, left), LEAST_DRAW)


def binomial_mixture(canary: int, bad: int, share: float, ratio: float) -> float:
    """Return the evidence that the canary's users fail over `ratio` times as often: a mixture of 20 alternatives."""
    null = share * ratio / (share * ratio + 1 - share)
    found = []
    for x in _LAMBDAS:
        theta = null + (1 - null) * x
        found.append(canary * math.log(theta / null) + (bad - canary) * math.log((1 - theta) / (1 - null)))
    return sum(math.exp(min(log, 700.0)) for log in found) / len(found)
