"""Years of one task, thousands at once: candidates come by the calendar, pairs by traffic, labels when people answer.

A year is a lane. Time goes in steps of `STEP` pairs of the task's traffic; at each step tickets are drawn as the ledger
draws them (in the order of pairs, only so many open at once, at most `max_labels`), labels arrive, and every running
candidate is decided about by `Decisions`, which is held equal to the deployer's `decide`. One candidate runs at a time;
the newest that came meanwhile waits, and draws its alpha at its turn.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np

from schemas.task_settings import RolloutSettings
from services.deployer.statistics.levels import Draw, level, next_draw
from services.deployer.transitions import MAX_OPEN_TICKETS
from tests.benchmarks.promotion.decisions import PENDING, UNDRAWN, Decisions, Next, Prefix, Rollouts
from tests.benchmarks.promotion.walk import BETTER, EQUAL, START, Truth, upper_bound

STEP = 50
DAYS = 364
WORSE = Truth(0.02, 0.04)
MIXED = {BETTER: 0.4, EQUAL: 0.4, WORSE: 0.2}
ALL_EQUAL = {EQUAL: 1.0}
NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Scenario:
    """A task's year. Times are in pairs of its traffic; shares are of pairs, tickets, answers or candidates.

    counted: share of pairs that may bet; the rest was cut short, or not sampled, which was decided before the candidate
    was asked. delay: until a label, uniform up to this. later_losses: added to it for a loss. one_user: share of the
    traffic that is one user's, all of whose labels agree. edited: labels that were wrong at first and are put right
    300 pairs later. changed: candidates in whose first 2,000 pairs the task's prompt changes.

    Rules broken on purpose. each_bets: all pairs of that one user bet. cut_wins: share of pairs in which production's
    answer was cut short, which bet all the same, and are won.
    """

    name: str
    days_between: float = 7.0
    pairs_a_day: int = 700
    counted: float = 1.0
    delay: int = 0
    later_losses: int = 0
    lost_losses: float = 0.0
    one_user: float = 0.0
    skips: float = 0.0
    edited: float = 0.0
    changed: float = 0.0
    each_bets: bool = False
    cut_wins: float = 0.0


SCENARIOS = (
    Scenario("labels at once"),
    Scenario("labels up to 600 pairs late, losses 600 more", delay=600, later_losses=600),
    Scenario("20 % of losses never labelled", delay=200, lost_losses=0.2),
    Scenario("one user with half the traffic", one_user=0.5),
    Scenario("no user, but independent authors"),
    Scenario("15 % skips", delay=200, skips=0.15),
    Scenario("5 % cut answers", counted=0.95),
    Scenario("a quarter sampled at random", counted=0.25),
    Scenario("10 % of labels edited", delay=100, edited=0.1),
    Scenario("a prompt changed in mid-test, every fifth candidate", changed=0.2),
    Scenario("daily cycles", days_between=1.0),
    Scenario("candidates queued: a week's evidence takes three", pairs_a_day=230, delay=100),
)


BROKEN = (
    Scenario("one user with half the traffic, if each pair of theirs bet", one_user=0.5, each_bets=True),
    Scenario("1 % cut answers, if they bet", cut_wins=0.01),
)
"""That production keeps these rules is shown by `test_simulated_rollouts.py`, through the deployer's own handlers."""


@dataclass(frozen=True)
class Years:
    """What happened. `false`: years in which a candidate that is not better was promoted; `ends`: of all candidates."""

    scenario: str
    years: int
    false: int
    better: int
    better_promoted: int
    candidates: int
    labels: int
    ends: Counter[str]

    @property
    def upper(self) -> float:
        """The upper 95 % bound of the share of years with a false promotion."""
        return upper_bound(self.false, self.years)


class Lanes:
    """The running candidate of each year."""

    def __init__(
        self,
        scenario: Scenario,
        truths: dict[Truth, float],
        years: int,
        seed: int,
        settings: RolloutSettings | None = None,
    ) -> None:
        self.scenario, self.settings = scenario, settings or RolloutSettings()
        self.truths, self.weights = list(truths), list(truths.values())
        self.random = np.random.default_rng(seed)
        self.decisions = Decisions(self.settings)
        size = years, self.settings.max_labels
        self.running, self.queued = (np.zeros(years, dtype=bool) for _ in range(2))
        self.alpha, self.promoted = np.zeros(years), np.zeros(years, dtype=bool)
        self.draws: list[list[Draw]] = [[] for _ in range(years)]
        self.truth = np.zeros(years, dtype=np.int64)
        self.percents = np.array([0, *self.settings.canary_steps])
        self.step, self.step_since = (np.zeros(years, dtype=np.int64) for _ in range(2))
        self.started, self.stage_since = (np.zeros(years, dtype=np.int64) for _ in range(2))
        self.prompt_at = np.full(years, NEVER)
        self.arrives, self.labelled, self.edited = (np.full(size, NEVER, dtype=np.int32) for _ in range(3))
        self.outcome, self.skips = (np.zeros(size, dtype=np.int8) for _ in range(2))
        self.arrived, self.drawn = (np.zeros(years, dtype=np.int64) for _ in range(2))
        self.final = Prefix.empty(years)
        self.better = self.better_promoted = self.candidates = self.labels = 0
        self.false = np.zeros(years, dtype=bool)
        self.ends: Counter[str] = Counter()

    def start(self, lanes: np.ndarray, now: int) -> None:
        """Give these lanes a new candidate: its truth, its pairs that differ and who will label them when."""
        if not len(lanes):
            return
        for lane in lanes:
            self.alpha[lane] = self._level(int(lane), now)
        self.truth[lanes] = self.random.choice(len(self.truths), size=len(lanes), p=self.weights)
        self.better += int((self.truth[lanes] == self._index(BETTER)).sum())
        self.candidates += len(lanes)
        self.running[lanes], self.queued[lanes], self.step[lanes] = True, False, 0
        self.started[lanes] = self.stage_since[lanes] = now
        self.arrived[lanes] = self.drawn[lanes] = 0
        self.final.put(lanes, Prefix.empty(len(lanes)))
        changes = self.random.random(len(lanes)) < self.scenario.changed
        self.prompt_at[lanes] = np.where(changes, now + self.random.integers(1, 2_000, len(lanes)), NEVER)
        self._draw_pairs(lanes, now)

    def _level(self, lane: int, now: int) -> float:
        """Draw what the deployer would give this candidate of the year's alpha."""
        moment = START + timedelta(days=now / self.scenario.pairs_a_day)
        yearly, draws, returned = self.settings.yearly_false_promotion, self.draws[lane], 0.0
        if self.promoted[lane]:
            returned, draws[-1] = float(self.alpha[lane]), replace(draws[-1], spent=0.0)
        drawn = next_draw(yearly, self.settings.cycles_per_year, draws, moment)
        alpha = level(yearly, self.settings.cycles_per_year, drawn, returned, draws, moment)
        draws.append(Draw(moment, drawn, alpha))
        return alpha

    def _draw_pairs(self, lanes: np.ndarray, now: int) -> None:
        scenario, random = self.scenario, self.random
        discordance = np.array([truth.discordance for truth in self.truths])[self.truth[lanes]][:, None]
        share = np.array([truth.share for truth in self.truths])[self.truth[lanes]][:, None]
        spare = 40 if scenario.one_user else 0
        size = len(lanes), self.settings.max_labels + (self.settings.max_labels + spare if spare else 0)
        differing = discordance * scenario.counted * (1 - scenario.cut_wins) + scenario.cut_wins
        gaps = random.geometric(np.broadcast_to(differing, size))
        outcome = np.where(random.random(size) < share, 1, -1).astype(np.int8)
        if scenario.cut_wins:
            outcome[random.random(size) < scenario.cut_wins / differing] = 1
        arrives = now + np.cumsum(gaps, axis=1)
        if scenario.one_user:
            theirs = random.random(size) < scenario.one_user
            if scenario.each_bets:
                first = np.take_along_axis(outcome, theirs.argmax(axis=1)[:, None], axis=1)
                outcome, theirs = np.where(theirs, first, outcome), np.zeros(size, dtype=bool)
            again = theirs & (np.cumsum(theirs, axis=1) > 1)
            order = np.argsort(again, axis=1, kind="stable")[:, : self.settings.max_labels]
            arrives = np.where(again, NEVER, arrives)
            arrives, outcome = (np.take_along_axis(values, order, axis=1) for values in (arrives, outcome))
        self.arrives[lanes] = np.minimum(arrives, NEVER)
        self.outcome[lanes], self.labelled[lanes], self.edited[lanes] = outcome, NEVER, NEVER

    def ask(self, lanes: np.ndarray, now: int) -> None:
        """Draw the tickets that there is room for and decide when their labels come."""
        last = self.settings.max_labels - 1
        while True:
            following = self.arrived[lanes]
            more = (following <= last) & (self.arrives[lanes, np.minimum(following, last)] <= now)
            if not more.any():
                break
            self.arrived[lanes] += more
        places, is_drawn = self._places(lanes)
        still_open = ((self.labelled[lanes[:, None], places] > now) & is_drawn).sum(axis=1)
        room = np.clip(np.minimum(MAX_OPEN_TICKETS - still_open, self.arrived[lanes] - self.drawn[lanes]), 0, None)
        lane = np.repeat(lanes, room)
        nth = np.arange(len(lane)) - np.repeat(np.cumsum(room) - room, room)
        place = self.drawn[lane] + nth
        self.drawn[lanes] += room
        self._label(lane, place, now)

    def _places(self, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of tickets that may still change, and which of these places have one."""
        first, end = self.final.drawn[lanes], self.drawn[lanes]
        places = first[:, None] + np.arange(max(1, int((end - first).max())))
        return np.minimum(places, self.settings.max_labels - 1), places < end[:, None]

    def _label(self, lane: np.ndarray, place: np.ndarray, now: int) -> None:
        scenario, random, count = self.scenario, self.random, len(lane)
        lost = self.outcome[lane, place] < 0
        after = random.integers(0, scenario.delay + 1, count) + np.where(lost, scenario.later_losses, 0)
        skipped = random.random((2, count)) < scenario.skips
        self.skips[lane, place] = skipped[0] + skipped.all(axis=0)
        after = after + np.where(skipped[0], random.integers(0, scenario.delay + 1, count), 0)
        never = lost & (random.random(count) < scenario.lost_losses)
        self.labelled[lane, place] = np.where(never, NEVER, now + after)
        self.outcome[lane, place] = np.where(skipped.all(axis=0), 0, self.outcome[lane, place])
        edited = ~never & (random.random(count) < scenario.edited)
        self.edited[lane, place] = np.where(edited, now + after + 300, NEVER)

    def seen(self, lanes: np.ndarray, places: np.ndarray, now: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the outcomes that the ledger has at these places, and which of them do not change any more."""
        at = lanes[:, None], places
        truth, labelled, edited = self.outcome[at], self.labelled[at] <= now, self.edited[at]
        waits = (edited != NEVER) & (edited > now)
        return np.where(labelled, np.where(waits, -truth, truth), PENDING), labelled & ~waits

    def served(self, lanes: np.ndarray, now: int) -> np.ndarray:
        """Return how many users the canary's present step has served: every request is another's."""
        return (now - self.step_since[lanes]) * self.percents[self.step[lanes]] // 100

    def decide(self, lanes: np.ndarray, now: int) -> None:
        """Move, promote or end the candidates of these lanes."""
        since = now - self.stage_since[lanes]
        places, is_drawn = self._places(lanes)
        seen, is_final = self.seen(lanes, places, now)
        before, outcomes = self.final.of(lanes), np.where(is_drawn, seen, UNDRAWN).astype(np.int8)
        rollouts = Rollouts(
            outcomes=outcomes,
            step=self.step[lanes],
            alpha=self.alpha[lanes],
            age=since / self.scenario.pairs_a_day,
            served=self.served(lanes, now),
            agreeing=np.zeros(len(lanes), dtype=np.int64),
        )
        decided = self.decisions.decide(rollouts, before)
        leading = np.logical_and.accumulate(is_final & is_drawn, axis=1).sum(axis=1)
        self.final.put(lanes, self.decisions.extend(before, outcomes, leading))
        to_canary = lanes[decided == Next.CANARY]
        self.stage_since[to_canary] = np.where(self.step[to_canary] == 0, now, self.stage_since[to_canary])
        self.step[to_canary] += 1
        self.step_since[to_canary] = now
        ended = decided > Next.CANARY
        invalid = (self.prompt_at[lanes] <= now) & ~ended
        self._end(lanes[ended], decided[ended])
        self._end(lanes[invalid], np.full(int(invalid.sum()), -1))

    def _end(self, lanes: np.ndarray, ends: np.ndarray) -> None:
        self.running[lanes] = False
        self.promoted[lanes] = ends == Next.PROMOTED
        is_better = self.truth[lanes] == self._index(BETTER)
        self.false[lanes] |= self.promoted[lanes] & ~is_better
        self.better_promoted += int((self.promoted[lanes] & is_better).sum())
        self.labels += int(self.drawn[lanes].sum())
        self.ends.update("PROMPT" if end < 0 else Next(end).name for end in ends)

    def _index(self, truth: Truth) -> int:
        return self.truths.index(truth) if truth in self.truths else -1


def simulate(scenario: Scenario, truths: dict[Truth, float], years: int, seed: int = 20) -> Years:
    """Play so many years."""
    lanes = Lanes(scenario, truths, years, seed)
    everyone = np.arange(years)
    next_candidate = 0.0
    for now in range(0, DAYS * scenario.pairs_a_day, STEP):
        if now >= next_candidate * scenario.pairs_a_day:
            lanes.queued[:] = True  # In the place of one that waits: the newest.
            next_candidate += scenario.days_between
        lanes.start(everyone[lanes.queued & ~lanes.running], now)
        if len(running := everyone[lanes.running]):
            lanes.ask(running, now)
            lanes.decide(running, now)
    return Years(
        scenario.name, years, int(lanes.false.sum()), lanes.better, lanes.better_promoted, lanes.candidates,
        lanes.labels, lanes.ends,
    )  # fmt: skip
