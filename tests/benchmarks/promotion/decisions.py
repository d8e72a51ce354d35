"""`decide` for thousands of rollouts at once, on arrays. `test_promotion.py` holds it equal to the deployer's own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from schemas.task_settings import RolloutSettings
from services.deployer.domain import NOTHING_DIFFERS
from services.deployer.statistics.betting import FUTILITY_ODDS, HARM_WEALTH, futility_odds, wealths
from tests.benchmarks.promotion.walk import Floats, counts

Ints = npt.NDArray[np.int64]
Outcomes = npt.NDArray[np.int8]
PENDING, UNDRAWN = 2, 3
"""Beside -1, 0 and 1: a ticket without a label, and a place of no ticket yet."""


class Next(IntEnum):
    """What becomes of a rollout; CANARY: its first or its next step.

    Of several reasons to reject it, the deployer's order decides which is named.
    """

    STAYS = 0
    CANARY = 1
    PROMOTED = 2
    HARM = 3
    FUTILE = 4
    NOTHING_DIFFERS = 5
    SPENT = 6
    EXPIRED = 7


@dataclass(frozen=True)
class Rollouts:
    """Many rollouts, one a row. `outcomes` in ticket order; `step`: of the canary, 0: in shadow; `age`: days in the
    stage; `served`: users since the step began.
    """

    outcomes: Outcomes
    step: Ints
    alpha: Floats
    age: Floats
    served: Ints
    agreeing: Ints


@dataclass(frozen=True)
class Prefix:
    """What the first tickets of each rollout, whose outcomes do not change any more, come to.

    `won`, `lost`, `drawn`: counts. `wealth`, `against`, `futility`: the greatest over their prefixes.
    """

    won: Ints
    lost: Ints
    drawn: Ints
    wealth: Floats
    against: Floats
    futility: Floats

    @classmethod
    def empty(cls, size: int) -> Prefix:
        return cls(*(np.zeros(size, dtype=np.int64) for _ in range(3)), *(np.ones(size) for _ in range(3)))

    def of(self, rows: Ints) -> Prefix:
        """Return those of some rollouts."""
        return Prefix(*(getattr(self, field.name)[rows] for field in fields(self)))

    def put(self, rows: Ints, prefix: Prefix) -> None:
        """Set those of some rollouts."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(prefix, field.name)


class Decisions:
    """Decides by tables of what the deployer's functions say of every count of wins and losses."""

    def __init__(self, settings: RolloutSettings) -> None:
        self._settings = settings
        wins, losses = counts(settings.max_labels + 1)
        self._wealth = wealths(wins, 0, losses)
        self._futility = futility_odds(wins, losses)

    def decide(self, rollouts: Rollouts, prefix: Prefix | None = None) -> npt.NDArray[np.int8]:
        """Return a `Next` for each rollout. Every ticket was asked, and no canary has failed requests.

        `prefix`: of the tickets before those in `outcomes`; none by default.
        """
        settings, x = self._settings, rollouts.outcomes
        before = prefix or Prefix.empty(len(x))
        won, lost, pending = self._counted(x, before)
        wealth = np.maximum(before.wealth, self._wealth[won, lost + pending].max(axis=1))
        harm = np.maximum(before.against, self._wealth[lost, won + pending].max(axis=1)) >= HARM_WEALTH
        futile = np.maximum(before.futility, self._futility[won + pending, lost].max(axis=1)) >= FUTILITY_ODDS
        drawn, waiting = before.drawn + (x != UNDRAWN).sum(axis=1), pending[:, -1] > 0
        won_now, lost_now = won[:, -1], lost[:, -1]
        proven = wealth >= 1 / rollouts.alpha
        bar = np.minimum(settings.canary_wealth, 1 / rollouts.alpha)
        speaks = (self._wealth[won_now, lost_now] >= bar) & (self._wealth[lost_now, won_now] < HARM_WEALTH)
        in_canary, at_last = rollouts.step > 0, rollouts.step >= len(settings.canary_steps)
        rises = in_canary & proven & (rollouts.served >= settings.min_canary_users)
        to_canary = (~in_canary & (proven | (wealth >= settings.canary_wealth))) | (rises & ~at_last)
        nothing = (rollouts.agreeing >= NOTHING_DIFFERS) & (drawn == 0)
        spent = (drawn >= settings.max_labels) & ~waiting
        ends = [
            (harm, Next.HARM),
            (futile & ~proven, Next.FUTILE),
            (nothing & ~proven, Next.NOTHING_DIFFERS),
            (spent & ~proven, Next.SPENT),
            (to_canary & speaks, Next.CANARY),
            (rises & at_last & speaks, Next.PROMOTED),
            (rollouts.age > settings.max_days, Next.EXPIRED),
        ]
        return np.select([where for where, _ in ends], [value for _, value in ends], Next.STAYS).astype(np.int8)

    def extend(self, prefix: Prefix, outcomes: Outcomes, count: Ints) -> Prefix:
        """Return the prefix with the first `count` of these outcomes, by rollout, which are final."""
        won, lost, _ = self._counted(outcomes, prefix)
        final = np.arange(outcomes.shape[1]) < count[:, None]
        tables = (self._wealth[won, lost], self._wealth[lost, won], self._futility[won, lost])
        most = (np.where(final, values, 1.0).max(axis=1) for values in tables)
        last = np.arange(len(count)), np.maximum(count - 1, 0)
        won_now, lost_now = (
            np.where(count > 0, counted[last], before) for counted, before in ((won, prefix.won), (lost, prefix.lost))
        )
        greatest = (prefix.wealth, prefix.against, prefix.futility)
        return Prefix(won_now, lost_now, prefix.drawn + count, *map(np.maximum, greatest, most))

    def _counted(self, outcomes: Outcomes, before: Prefix) -> tuple[Ints, Ints, Ints]:
        won, lost, pending = (np.cumsum(outcomes == value, axis=1) for value in (1, -1, PENDING))
        return won + before.won[:, None], lost + before.lost[:, None], pending
