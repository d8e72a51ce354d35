"""A candidate's exact chances: every count of wins and losses is walked with its probability, label by label.

Which counts end a rollout is asked of the deployer's own functions; labels come at once here, so a running maximum
reaches a bar when the wealth of the counts does. `test_promotion.py` plays random histories through `decide` and
compares. A walk is over decisive labels; a pair is decisive at the rate of discordance, so pairs follow by the binomial
distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom

from schemas.task_settings import RolloutSettings
from services.deployer.statistics.betting import (
    FUTILITY_ODDS,
    HARM_WEALTH,
    futility_odds,
    wealths,
)
from services.deployer.statistics.levels import Draw, level, next_draw

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
PAIRS = 5_000
"""A week's pairs: how long a candidate may take."""
SETTINGS = RolloutSettings()
START = datetime(2027, 1, 4, tzinfo=UTC)
YEARLY, CYCLES = SETTINGS.yearly_false_promotion, SETTINGS.cycles_per_year
LEVEL = next_draw(YEARLY, CYCLES, [Draw(START, YEARLY / CYCLES, YEARLY / CYCLES)], START + timedelta(days=7))
"""A weekly candidate's alpha where its predecessor was not promoted: the least there is."""


def upper_bound(events: int, runs: int) -> float:
    """Return the one-sided upper 95 % bound of a share (Clopper & Pearson 1934)."""
    return float(beta.ppf(0.95, events + 1, runs - events)) if events < runs else 1.0


@dataclass(frozen=True)
class Truth:
    """The rates of pairs on which only the candidate, or only production, is right."""

    win: float
    loss: float

    @property
    def discordance(self) -> float:
        return self.win + self.loss

    @property
    def share(self) -> float:
        return self.win / self.discordance


BETTER, EQUAL, HARMFUL = Truth(0.04, 0.02), Truth(0.03, 0.03), Truth(0.02, 0.05)


def counts(labels: int) -> tuple[Floats, Floats]:
    """Return wins and losses of every state, shape (labels + 1, labels + 1) by wins and losses."""
    wins, losses = np.meshgrid(np.arange(labels + 1.0), np.arange(labels + 1.0), indexing="ij")
    return wins, losses


def regions(alpha: float, settings: RolloutSettings = SETTINGS) -> dict[str, Bools]:
    """Return the counts at which a rollout with labels at once ends, by its end; those of the canary do not end it."""
    wins, losses = counts(settings.max_labels)
    wealth = wealths(wins, 0, losses)
    harm = wealth.T >= HARM_WEALTH
    promoted = (wealth >= 1 / alpha) & ~harm
    futile = (futility_odds(wins, losses) >= FUTILITY_ODDS) & ~harm & ~promoted
    spent = (wins + losses >= settings.max_labels) & ~harm & ~promoted & ~futile
    canary = wealth >= min(settings.canary_wealth, 1 / alpha)
    return {"harm": harm, "promoted": promoted, "futile": futile, "spent": spent, "canary": canary}


def first_hits(ends: Mapping[str, Bools], share: float) -> dict[str, Floats]:
    """Return, by end, P(the walk ends so at decisive label k), each won with probability `share`."""
    size = next(iter(ends.values())).shape[0]
    any_end = np.logical_or.reduce(list(ends.values()))
    hits = {end: np.zeros(size) for end in ends}
    alive = np.ones(1)  # By wins, of so many labels.
    for label in range(size):
        wins = np.arange(label + 1)
        at = wins, label - wins
        for end, region in ends.items():
            hits[end][label] = alive[region[at]].sum()
        alive = np.where(any_end[at], 0.0, alive)
        alive = np.append(alive * (1 - share), 0.0) + np.append(0.0, alive * share)
    return hits


def chance(hits: Floats, discordance: float, pairs: int = PAIRS) -> float:
    """Return P(it happened within so many pairs)."""
    return float(hits @ binom.sf(np.arange(len(hits)) - 1, pairs, discordance))


def quantile_pairs(hits: Floats, discordance: float, share: float = 0.5) -> float:
    """Return by how many pairs it has happened with this probability; infinite where it never does."""
    if hits.sum() < share:
        return float("inf")
    low, high = 0, 1
    while chance(hits, discordance, high) < share:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(hits, discordance, middle) >= share else (middle, high)
    return high


def quantile_labels(hits: Floats, share: float = 0.5) -> float:
    """Return by how many decisive labels it has happened with this probability; infinite where it never does."""
    reached = np.cumsum(hits) >= share
    return float(reached.argmax()) if reached.any() else float("inf")


def rising_pairs(settings: RolloutSettings = SETTINGS) -> int:
    """Return the pairs of a canary between proof and everyone: requests of others, while each later step serves its
    users, each with one request.
    """
    later = settings.canary_steps[1:]
    return sum(settings.min_canary_users * (100 - percent) // percent for percent in later)


def mean_labels(hits: Mapping[str, Floats]) -> float:
    """Return the mean number of labels until a rollout ends."""
    return float(sum((found * np.arange(len(found))).sum() for found in hits.values()))


def any_false_promotion(truths: Mapping[Truth, float], better: Truth, weeks: int = 52) -> float:
    """Return the exact probability that a year of weekly candidates promotes one that is not better.

    truths: kinds of candidates by their share; each week draws one. The levels are those that the deployer gives: a
    promoted predecessor returns half a share of its own at most.
    """
    draws: list[Draw] = []  # What was spent is not their limit here: from nothing, it is at most what was drawn.
    chances: dict[float, dict[Truth, float]] = {}
    years: dict[tuple[float, bool], float] = {}  # Without a false promotion so far, by the last alpha and its success.
    years[0.0, False] = 1.0
    for week in range(weeks):
        now = START + timedelta(days=7 * week)
        draws.append(Draw(now, next_draw(YEARLY, CYCLES, draws, now), 0.0))
        following: dict[tuple[float, bool], float] = {}
        for (alpha, promoted), mass in years.items():
            drawn = level(YEARLY, CYCLES, draws[-1].amount, alpha if promoted else 0.0, (), now)
            here = round(drawn, 12)
            if here not in chances:
                ends = {end: region for end, region in regions(drawn).items() if end != "canary"}
                chances[here] = {truth: float(first_hits(ends, truth.share)["promoted"].sum()) for truth in truths}
            for truth, weight in truths.items():
                promoting = chances[here][truth]
                following[here, False] = following.get((here, False), 0.0) + mass * weight * (1 - promoting)
                if truth == better:
                    following[here, True] = following.get((here, True), 0.0) + mass * weight * promoting
        years = {state: mass for state, mass in following.items() if mass > 1e-12}
    return 1 - sum(years.values())


@dataclass(frozen=True)
class AfterPromotions:
    """A year of equal candidates after promotions in a row, all of them right: what they gave back is there as well.

    `false`: the exact probability that one is promoted. `least`: the least level of a candidate, in cycles' shares.
    """

    false: float
    least: float


def after_promotions(promoted: int, cycles: int = CYCLES) -> AfterPromotions:
    """Play the year after so many of them."""
    draws: list[Draw] = []
    returned, survives, least = 0.0, 1.0, 1.0
    for number in range(promoted + cycles):
        now, is_equal = START + timedelta(days=365 / cycles * number), number >= promoted
        drawn = next_draw(YEARLY, cycles, draws, now)
        alpha = level(YEARLY, cycles, drawn, returned, draws, now)
        draws.append(Draw(now, drawn, alpha if is_equal else 0.0))
        returned = 0.0 if is_equal else alpha
        if is_equal:
            ends = {end: region for end, region in regions(alpha).items() if end != "canary"}
            survives *= 1 - float(first_hits(ends, EQUAL.share)["promoted"].sum())
            least = min(least, alpha * cycles / YEARLY)
    return AfterPromotions(1 - survives, least)
