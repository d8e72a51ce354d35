"""Is a candidate not worse by more than a margin? And how much margin a task has left. Pure.

The betting test (`betting.py`) of the same tickets, in the same order and by the same bets, against another null: a
subject's first pair has E[X] <= -M, and no later one is better, E[X] <= 0. So a subject's first pair, which agrees
(X = 0) or differs, multiplies a bet by 1 + lambda (X + M), and a first difference that comes later by 1 + lambda X. A
subject brings the margin once, however many of its pairs agree: counted apart, one who sends much would prove anything.

- A pair that differs and has no label counts as -1, and pairs that agree count up to the oldest one that differs and
  waits to become a ticket. Pairs that agree come at once and labels late: counted as they come, 100 % of claims at a
  delay of 500 pairs were false. No sampling: every pair that differs gets a ticket, in its turn, or ends the prefix.
- Each factor is at least that of superiority, so at every prefix whoever proves superiority has proven this. Where
  neither is true, the chance that either is claimed is therefore at most alpha: they share one.
- The test against all margins at once is a confidence sequence (`bounds.py`), so the least margin that is proven when a
  candidate is promoted may be the one that is debited.

A margin given every week adds up: two points a week are a hundred a year. Each promotion that was only proven
non-inferior therefore debits its margin, and debits may reach `YEARLY_MARGIN` within a year and since the last champion
that was proven superior: a chain of candidates that are "not worse" never ends far below a model that once won.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from services.deployer.statistics.betting import Floats, prefix_wealths

YEARLY_MARGIN = 0.02
"""Accuracy that non-inferior promotions may give away in a year, all together."""
LEAST_MARGIN = 0.005
"""Less of it proves nothing: equal candidates would take some 30,000 pairs."""
_STEP = 0.001
"""Margins are debited in tenths of a point."""
_YEAR = timedelta(days=365)


@dataclass(frozen=True)
class Promotion:
    """A promotion of a task and the margin that it was proven with; 0: it was proven superior.

    `stands`: it was not taken back. A superior one that was is no champion; a margin stays debited.
    """

    at: datetime
    margin: float = 0.0
    stands: bool = True


@dataclass(frozen=True)
class Allowance:
    """The margin that is left to a task, and the greatest share of wrong labels, below 1/2, that its test allows for.

    Wrong labels shrink every difference by 1 - 2 times their share, so the margin shrinks with them.
    """

    left: float
    annotator_error: float = 0.0

    @property
    def is_enough(self) -> bool:
        return self.left >= LEAST_MARGIN

    def labelled(self, margin: float) -> float:
        """Return the mean of labelled X that is tested against. Raises ValueError for what proves nothing."""
        error = self.annotator_error
        if not 0 < margin < 1 or not 0 <= error < 0.5:
            raise ValueError(f"expected a margin in (0, 1) and an error in [0, 0.5), not {margin} and {error}")
        return -margin * (1 - 2 * error)


@dataclass(frozen=True)
class Bets:
    """What bets against a margin. `outcomes`: of the tickets in their order; None: no label yet.

    `opens`, as long: the ticket is its subject's first pair of all. `agreeing`, one longer: subjects whose first pair
    agrees that count before each ticket, and after the last.
    """

    outcomes: Sequence[float | None]
    opens: Sequence[bool]
    agreeing: Sequence[int]

    @property
    def subjects(self) -> int:
        return sum(self.opens) + self.agreeing[-1]

    def wealth(self, allowance: Allowance, margin: float | None = None) -> float:
        """Return the test's statistic against "worse by this margin or more", by default by all that is left.

        It is the greatest wealth of any prefix, at least 1, with a ticket without a label as lost.
        """
        x = np.array([-1.0 if outcome is None else outcome for outcome in self.outcomes])
        mean = allowance.labelled(allowance.left if margin is None else margin)
        return max(1.0, float(self._wealths(x, mean).max()))

    def wealth_now(self, allowance: Allowance) -> float:
        """Return the wealth of the labels as they stand, without any that is missing: no test (`wealth_now`)."""
        labelled = [(x, opens) for x, opens in zip(self.outcomes, self.opens, strict=True) if x is not None]
        agreeing = [self.agreeing[-1]] * (len(labelled) + 1)
        known = Bets([x for x, _ in labelled], [opens for _, opens in labelled], agreeing)
        x = np.array([x for x, _ in labelled])
        return float(known._wealths(x, allowance.labelled(allowance.left))[-1])

    def least_margin(self, allowance: Allowance, alpha: float) -> float:
        """Return the least margin, in tenths of a point and of what is left, at which the wealth reaches 1/alpha."""
        tenths = range(1, math.ceil(allowance.left / _STEP))
        proven = (round(n * _STEP, 6) for n in tenths if self.wealth(allowance, n * _STEP) >= 1 / alpha)
        return next(proven, allowance.left)

    def _wealths(self, x: Floats, mean: float) -> Floats:
        return prefix_wealths(x, np.where(self.opens, mean, 0.0), self.agreeing, mean)


def margin_left(promotions: Sequence[Promotion], now: datetime, yearly: float = YEARLY_MARGIN) -> float:
    """Return the margin that the next candidate may be tested with, none of it to be given twice.

    promotions: all of the task, in any order.
    """
    proven = max((p.at for p in promotions if p.stands and not p.margin), default=None)
    of_year = sum(promotion.margin for promotion in promotions if promotion.at > now - _YEAR)
    since_proven = sum(promotion.margin for promotion in promotions if proven is None or promotion.at > proven)
    return round(max(0.0, yearly - max(of_year, since_proven)), 6)
