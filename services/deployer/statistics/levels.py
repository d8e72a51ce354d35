"""The level of a candidate's test: a year's alpha accrues day by day, and a ledger keeps what was drawn of it. Pure.

Online fallback (Tian & Ramdas 2021): a candidate's level is what it draws, plus its predecessor's if that one was
promoted, since a right promotion spends nothing. The probability of any false promotion is then at most the sum
of the draws. A share of the year for every candidate, however often one comes, broke that: daily ones had .21 a year.

So it is from a task's beginning. For any 365 days in it, the levels that are spent in them are bounded as well: what
right promotions have given back all year would else come on top of the next year's draws (.071 after 52 of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

YEAR = timedelta(days=365)
_MOST_BACK = 0.5
"""Of a cycle's share, what a promoted predecessor gives back at most."""
LEAST = 1e-9
"""Drawn where nothing has accrued: a level above 0 that nobody reaches, and a billion of them are one per mille."""


@dataclass(frozen=True)
class Draw:
    """What a candidate drew when it entered shadow, without what its predecessor gave back.

    `spent`: the whole level of its test, with that; 0 where it was promoted as better.
    """

    at: datetime
    amount: float
    spent: float


def next_draw(yearly: float, cycles_per_year: int, draws: Sequence[Draw], now: datetime) -> float:
    """Return what a candidate that enters now draws.

    Alpha accrues at `yearly` / 365 a day since the last draw, up to one cycle's share, `yearly` / `cycles_per_year`,
    which a task's first candidate has at once. All draws of any 365 days are at most `yearly`. `draws`: the task's, in
    any order, at least those of the last year.
    """
    share = yearly / cycles_per_year
    last = max((draw.at for draw in draws), default=None)
    accrued = share if last is None else min(share, yearly * ((now - last) / YEAR))
    left = yearly - sum(draw.amount for draw in draws if now - draw.at < YEAR)
    return max(min(accrued, left), LEAST)


def level(
    yearly: float, cycles_per_year: int, drawn: float, returned: float, draws: Sequence[Draw], now: datetime
) -> float:
    """Return the level of a test: what was drawn, and of what a promoted predecessor gave back half a share at most.

    At most what the tests of the last 365 days have left of the year's. `draws`: those before it, in any order. The
    tests of equal candidates in any 365 days, up to a first promotion, which would be false, then have levels that sum
    to `yearly` at most; and so has the probability of it (a union over them).

    With more of what came back, one test that fails would spend what the cycles of a year after it draw.
    """
    spent = sum(draw.spent for draw in draws if now - draw.at < YEAR)
    back = min(returned, _MOST_BACK * yearly / cycles_per_year)
    return max(min(drawn + back, yearly - spent), LEAST)
