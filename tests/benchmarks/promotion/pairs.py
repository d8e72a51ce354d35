"""Exact chances where pairs that agree count too, or where requests fail: non-inferiority and the canary's guard."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np

from schemas.task_settings import RolloutSettings
from services.deployer.rollout import CONTROL_TICKETS
from services.deployer.statistics.betting import canary_guard, wealth_of_outcomes, wealths
from services.deployer.statistics.canary import Arms, CanaryCounts, canary_failure
from services.deployer.statistics.guards import (
    LIMIT,
    MEASURED_REQUESTS,
    SLOW_SHARE,
    Guard,
    excess,
    percentile_rank,
    together,
)
from services.deployer.statistics.non_inferiority import Allowance
from tests.benchmarks.promotion.walk import PAIRS, SETTINGS, Bools, Floats, Truth, upper_bound

_CAP = 260
"""Wins, and losses, of a walk: 5,000 pairs at 3 % have more with probability 1e-13."""


@dataclass(frozen=True)
class NotWorse:
    """When non-inferiority is proven: `hits` by pair."""

    hits: Floats

    @property
    def power(self) -> float:
        return float(self.hits.sum())

    @property
    def median(self) -> float:
        reached = np.cumsum(self.hits) >= 0.5
        return float(reached.argmax()) if reached.any() else float("inf")


def not_worse(truth: Truth, margin: float, alpha: float, annotator_error: float = 0.0) -> NotWorse:
    """Walk all counts of wins and losses, pair by pair, with labels of which a share is wrong."""
    win = truth.win * (1 - annotator_error) + truth.loss * annotator_error
    loss = truth.discordance - win
    tested = Allowance(margin, annotator_error).labelled(margin)
    alive, hits = np.zeros((_CAP, _CAP)), np.zeros(PAIRS + 1)
    alive[0, 0] = 1.0
    lost, needed = np.arange(_CAP), np.full(_CAP, _CAP)
    for pair in range(1, PAIRS + 1):
        stay = alive * (1 - truth.discordance)
        stay[1:] += alive[:-1] * win
        stay[:, 1:] += alive[:, :-1] * loss
        alive = stay
        needed = _wins_needed(pair, needed, tested, 1 / alpha)
        proven = np.arange(_CAP)[:, None] >= needed[lost][None, :]
        hits[pair] = alive[proven].sum()
        alive[proven] = 0.0
    return NotWorse(hits)


def _wins_needed(pair: int, last: np.ndarray, margin: float, bar: float) -> np.ndarray:
    """Return the fewest wins that prove it, by losses. They fall as pairs agree, so the last numbers are a start."""
    lost, needed = np.arange(_CAP), last.copy()
    while True:
        fewer = np.maximum(needed - 1, 0)
        possible = (needed > 0) & (fewer + lost <= pair)
        enough = possible & (wealths(fewer, np.maximum(pair - fewer - lost, 0), lost, margin) >= bar)
        if not enough.any():
            return needed
        needed = np.where(enough, fewer, needed)


def guard_stops(ratio: float, users: int = 300, settings: RolloutSettings = SETTINGS) -> float:
    """Return P(the canary's guard stops a canary whose users fail `ratio` times as often), among so many that fail."""
    share = settings.canary_steps[0] / 100
    in_canary = share * ratio / (share * ratio + 1 - share)
    alive, stopped = np.ones(1), 0.0  # By users of the canary among those with a failed request.
    for bad in range(1, users + 1):
        alive = np.append(alive * (1 - in_canary), 0.0) + np.append(0.0, alive * in_canary)
        stops: Bools = np.array([_stops(canary, bad, settings) for canary in range(bad + 1)])
        stopped += alive[stops].sum()
        alive[stops] = 0.0
    return float(stopped)


@dataclass(frozen=True)
class Stopped:
    """How many of `runs` healthy canaries the guards ended."""

    runs: int
    ended: int

    @property
    def upper(self) -> float:
        return upper_bound(self.ended, self.runs)


class Canary(StrEnum):
    """A canary that is not worse than tolerated. The value is its name in the report."""

    HEALTHY = "a healthy canary"
    AT_LIMIT = "one at every limit"
    BUSY_HOUR = "one at every limit, while both arms are slower than before"


def all_guards_stop(canary: Canary, shared: float, runs: int = 4_000, events: int = 200, seed: int = 20) -> Stopped:
    """Play all guards of canaries none of which is worse than tolerated, and look at them together after each event,
    while the canary goes through its steps and its promotion has a control. By Monte Carlo.

    canary: each guard's events as frequent as the primary's, or exactly as frequent as tolerated. `shared`: the
    probability that an event of one guard is of the same subject as those of all others (who has an error complains,
    and waited), so that 1 moves all evidence together.

    The evidence of slow answers is the smaller one of two (`guards.py`). Each is played alone, as if the other were
    beyond any limit, which ends no fewer: the past's, whose limit was measured and so differs by canary; in a busy
    hour, where all answers are slower than in the past, that of the arms meanwhile. Fresh pairs are labelled in the
    time of control alone.
    """
    random = np.random.default_rng(seed)
    shares = np.array((*SETTINGS.canary_steps, 100 - SETTINGS.control_percent)) / 100
    steps = np.arange(events) * len(shares) // events  # It rises after equally many events.
    at = steps == np.arange(len(shares))[:, None]
    common, together_at = random.random((runs, events)), random.random((runs, events)) < shared
    evidence = {}
    for guard in Guard:
        drawn = np.where(together_at, common, random.random((runs, events)))
        if guard is Guard.LABELS:
            evidence[guard] = _labels_over_time(drawn < (1 / 3 if canary is Canary.HEALTHY else 1 / 2), at[-1])
            continue
        of_past = guard is Guard.LATENCY and canary is not Canary.BUSY_HOUR
        null, of_canary = _null(guard, shares, of_past), _slow(random, runs)
        if not of_past:
            tolerated = shares * null[1] / (shares * null[1] + 1 - shares)
            of_canary = (shares if canary is Canary.HEALTHY else tolerated)[steps]
        elif canary is Canary.HEALTHY:
            of_canary = of_canary / 2
        seen = drawn < of_canary
        evidence[guard] = _over_time(np.stack([np.cumsum(seen & step, axis=1) for step in at]), at, null)
    return Stopped(runs, int((np.asarray(together(evidence)) >= LIMIT).any(axis=1).sum()))


def slow_users_stop(users: int = 400, days: int = 28, runs: int = 4_000, seed: int = 20) -> Stopped:
    """Play canaries like their primary, of whose users one in twenty is slow each day, and look at the evidence of slow
    answers after each, as if the arms' spoke against them, too. By Monte Carlo."""
    random = np.random.default_rng(seed)
    evidence = cache(lambda slow, measured: excess(slow, measured, SLOW_SHARE))
    ended = 0
    for of_first_day in random.random((runs, users)) < SLOW_SHARE:
        slow = np.cumsum(of_first_day)
        at_ends = [(int(slow[-1]), users + day * (users - int(slow[-1]))) for day in range(1, days)]
        looked_at = [*zip(slow.tolist(), range(1, users + 1), strict=True), *at_ends]
        ended += any(together({Guard.LATENCY: evidence(*seen)}) >= LIMIT for seen in looked_at)
    return Stopped(runs, ended)


def _labels_over_time(lost: np.ndarray, is_fresh: np.ndarray) -> Floats:
    """Return the evidence of fresh pairs' labels after each event, by run and event: 1 before the first one.

    lost: whether the label is for the adapter before, by run and event; is_fresh: whether a fresh pair is labelled.
    """
    tickets = np.minimum(np.cumsum(is_fresh), CONTROL_TICKETS)
    counted = is_fresh & (np.cumsum(is_fresh) <= CONTROL_TICKETS)
    losses = np.cumsum(lost & counted, axis=1)
    found = cache(lambda n, against: wealth_of_outcomes([1.0] * against + [-1.0] * (n - against), 0, 0.0))
    numbers = tickets.tolist()
    return np.array(
        [[found(n, against) if n else 1.0 for n, against in zip(numbers, run, strict=True)] for run in losses.tolist()]
    )


def _null(guard: Guard, shares: Floats, of_past: bool) -> tuple[Floats, float]:
    """Return a guard's null: the canary's shares of its events at a ratio of 1, and the ratio that is tolerated."""
    if of_past:
        return np.full(len(shares), SLOW_SHARE), 1.0
    by_errors = guard in (Guard.ERRORS, Guard.LATENCY)
    return shares, SETTINGS.max_error_ratio if by_errors else SETTINGS.max_complaint_ratio


def _slow(random: np.random.Generator, runs: int) -> Floats:
    """Return the share of answers over the frozen percentile, one for each run: over an order statistic of as many."""
    rank = percentile_rank(MEASURED_REQUESTS) or MEASURED_REQUESTS
    return np.asarray(random.beta(MEASURED_REQUESTS - rank + 1, rank, (runs, 1)))


def _over_time(seen: np.ndarray, at: np.ndarray, null: tuple[np.ndarray, float]) -> Floats:
    """Return the evidence after each event, by run and event.

    seen: of the canary so far, by share, run and event; at: whether it has that share then, by share and event.
    """
    totals = np.cumsum(at, axis=1)
    evidence = np.empty(seen.shape[1:])
    for event in range(seen.shape[2]):
        counts, where = np.unique(seen[:, :, event], axis=1, return_inverse=True)
        found = [canary_guard(counted, totals[:, event], *null) for counted in counts.T]
        evidence[:, event] = np.array(found)[where.ravel()]
    return evidence


def _stops(bad_canary: int, bad: int, settings: RolloutSettings) -> bool:
    arms = [Arms(settings.canary_steps[0], bad_canary, bad)]
    return bool(canary_failure(CanaryCounts(arms={Guard.ERRORS: arms}), settings))
