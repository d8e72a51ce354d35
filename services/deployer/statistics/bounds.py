"""How much better a candidate is: bounds of the difference in accuracy that hold at any time. Pure.

The difference is the mean of X over pairs: 1 where only the candidate was right, -1 where only production was, else 0.
All margins m whose wealth W_m stays below 1/alpha form a confidence sequence: it covers the true mean at all times at
once with probability 1 - alpha (Howard et al. 2021; Waudby-Smith & Ramdas 2024). So a reader may look at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

from scipy.optimize import brentq

from services.deployer.statistics.betting import wealth_of_outcomes

CONFIDENCE = 0.95
"""Of the interval, both sides together."""
_EDGE = 1 - 1e-9
_TOLERANCE = 1e-7


def lower_bound(outcomes: Sequence[float | None], agreeing: int, alpha: float, pending: float = -1.0) -> float:
    """Return inf{m : W_m < 1/alpha}, in [-1, 1]: the mean of X is at least this, at confidence 1 - alpha.

    outcomes: of the tickets, None: no label yet, which counts as `pending`. agreeing: pairs whose answers are the same.
    W_m falls as m grows, so there is one such point. It is found to 1e-7.
    """

    def excess(margin: float) -> float:
        return wealth_of_outcomes(outcomes, agreeing, margin, pending) - 1 / alpha

    if excess(-_EDGE) < 0:
        return -1.0
    if excess(_EDGE) >= 0:
        return 1.0
    return float(brentq(excess, -_EDGE, _EDGE, xtol=_TOLERANCE))


def interval(outcomes: Sequence[float | None], agreeing: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return bounds that hold together at this confidence, half of the rest spent on each side.

    A ticket without a label counts as lost for the lower bound and as won for the upper one.
    """
    alpha = (1 - confidence) / 2
    worse = [None if x is None else -x for x in outcomes]
    return lower_bound(outcomes, agreeing, alpha), 0.0 - lower_bound(worse, agreeing, alpha)
