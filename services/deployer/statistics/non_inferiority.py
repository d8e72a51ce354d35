"""Is a candidate not worse by more than a margin? And how much margin a task has left. Pure.

The same betting test against E[X] <= -M: pairs that agree are X = 0 and count, so every pair must have been drawn (no
sampling). Superiority and non-inferiority may share one alpha: W_m falls as m grows, on the same grid of bets, so
whoever proves superiority has proven non-inferiority before, and at most one of the two claims can be false first.

A margin given every week adds up: two points a week are a hundred a year. Each promotion that was only proven
non-inferior therefore debits its margin, and debits may reach `YEARLY_MARGIN` within a year and since the last champion
that was proven superior: a chain of candidates that are "not worse" never ends far below a model that once won.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.deployer.statistics.betting import wealth_of_outcomes

YEARLY_MARGIN = 0.02
"""Accuracy that non-inferior promotions may give away in a year, all together."""
_YEAR = timedelta(days=365)


@dataclass(frozen=True)
class Promotion:
    """A promotion of a task and the margin that it was proven with; 0: it was proven superior."""

    at: datetime
    margin: float = 0.0


def non_inferiority_wealth(
    outcomes: Sequence[float | None], agreeing: int, margin: float, annotator_error: float = 0.0
) -> float:
    """Return the wealth against "the candidate is worse by `margin` or more"; 1/alpha proves that it is not.

    outcomes: of the tickets, None: no label yet, which counts as -1. agreeing: pairs whose answers are the same.
    annotator_error: the greatest share of wrong labels, below 1/2. Wrong labels shrink every difference by 1 - 2 times
    their share, so the margin shrinks with them: m = -margin (1 - 2 annotator_error).
    """
    return wealth_of_outcomes(outcomes, agreeing, labelled_margin(margin, annotator_error))


def labelled_margin(margin: float, annotator_error: float = 0.0) -> float:
    """Return the mean of labelled X that is tested against. Raises ValueError for what proves nothing."""
    if not 0 < margin < 1 or not 0 <= annotator_error < 0.5:
        raise ValueError(f"expected a margin in (0, 1) and an error in [0, 0.5), not {margin} and {annotator_error}")
    return -margin * (1 - 2 * annotator_error)


def margin_left(promotions: Sequence[Promotion], now: datetime, yearly: float = YEARLY_MARGIN) -> float:
    """Return the margin that the next candidate may be tested with; 0: only superiority promotes it.

    promotions: all of the task, in any order.
    """
    proven = max((promotion.at for promotion in promotions if not promotion.margin), default=None)
    of_year = sum(promotion.margin for promotion in promotions if promotion.at > now - _YEAR)
    since_proven = sum(promotion.margin for promotion in promotions if proven is None or promotion.at > proven)
    return max(0.0, yearly - max(of_year, since_proven))
