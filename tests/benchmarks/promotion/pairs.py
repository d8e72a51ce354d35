"""Exact chances where pairs that agree count too, or where requests fail: non-inferiority and the canary's guard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.tasks import RolloutSettings
from services.deployer.statistics.betting import canary_guard, wealths
from services.deployer.statistics.canary import Arms, CanaryCounts, canary_failure
from services.deployer.statistics.guards import LIMIT, SLOW_SHARE, Guard, together
from services.deployer.statistics.non_inferiority import labelled_margin
from tests.benchmarks.promotion.walk import PAIRS, SETTINGS, Bools, Floats, Truth

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
    tested = labelled_margin(margin, annotator_error)
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


def all_guards_stop(at_limit: bool, runs: int = 4_000, events: int = 200, seed: int = 20) -> float:
    """Return the share of canaries that the guards end together, none of which is worse than tolerated.

    at_limit: each exactly as bad as tolerated, else as good as the primary. After each of so many events of every guard
    all are looked at, while the canary goes through its steps. By Monte Carlo.
    """
    random, shares = np.random.default_rng(seed), np.array(SETTINGS.canary_steps) / 100
    steps = np.arange(events) * len(shares) // events  # It rises after equally many events.
    ratios = {guard: SETTINGS.max_complaint_ratio for guard in Guard} | {Guard.ERRORS: SETTINGS.max_error_ratio}
    evidence = {}
    for guard, ratio in ratios.items():
        tolerated = shares * ratio / (shares * ratio + 1 - shares)
        null, of_canary = (shares, ratio), (tolerated if at_limit else shares)[steps]
        if guard is Guard.LATENCY:
            null, of_canary = (np.full(len(shares), SLOW_SHARE), 1.0), SLOW_SHARE if at_limit else SLOW_SHARE / 2
        seen = random.random((runs, events)) < of_canary
        at = steps == np.arange(len(shares))[:, None]
        evidence[guard] = _over_time(np.stack([np.cumsum(seen & step, axis=1) for step in at]), at, null)
    return float((np.asarray(together(evidence)) >= LIMIT).any(axis=1).mean())


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
