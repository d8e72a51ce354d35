"""A history in which everything is right, for tests that plant a fault in it.

One task and three candidates: `good` is promoted, with a control for a while, `bad` is rejected as worse, `fragile` by
its canary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.chaos.rollouts.checks.flags import PROBES, served, serving_at
from tests.chaos.rollouts.checks.history import (
    Answer,
    Change,
    Draw,
    EngineState,
    Entry,
    Flags,
    History,
    Move,
    Pair,
    Request,
    Rules,
    Sample,
)
from tests.chaos.rollouts.checks.wealth import draw, max_wealth

TASK, ENGINE = "task", "http://engine"
RULES = Rules(0.9, 9_000, 20.0, (25, 50), 5, 80, 25, control_percent=5, control_seconds=20.0, late_seconds=10.0)
CANDIDATES = ("good", "bad", "fragile")


class Story:
    """Tells one candidate after the other. Places in the topics follow the order in which things are told."""

    def __init__(self) -> None:
        self.history = History(RULES, {candidate: TASK for candidate in CANDIDATES})
        self.moves: list[Move] = []
        self.pairs: list[Pair] = []
        self.answers: list[Answer] = []
        self.entries: list[Entry] = []
        self.draws: list[Draw] = []
        self.requests: list[Request] = []
        self.primary: str | None = None

    def move(self, candidate: str, stage: str, at: float, reason: str = "", percent: int = 0, **evidence: Any) -> None:
        rollout_id = f"rollout-{candidate}"
        version = sum(move.rollout_id == rollout_id for move in self.moves)
        alpha = next((d.alpha for d in self.draws if d.rollout_id == rollout_id), 0.0001)
        said = {"wins": 0, "losses": 0, "labels": 0, "wealth": 1.0, "canary_requests": 0, "canary_errors": 0}
        said |= {"alpha": alpha, **evidence}
        self.moves.append(Move(rollout_id, version, at, TASK, candidate, stage, reason, said, "", percent))

    def enter(self, candidate: str, at: float, returned: float) -> None:
        """Let a candidate wait, draw its level and enter shadow."""
        earlier = [(d.at, d.drawn) for d in self.draws]
        drawn = draw(RULES.yearly, RULES.cycles, earlier, at)
        self.draws.append(Draw(f"rollout-{candidate}", TASK, at, drawn, drawn + returned))
        self.move(candidate, "queued", at - 1)
        self.move(candidate, "shadow", at)

    def tickets(self, candidate: str, outcomes: Sequence[int], at: float) -> None:
        """Let people answer tickets, one a second, after as many pairs; one pair more agrees."""
        for number, outcome in enumerate([*outcomes, None]):
            name = f"{candidate}-{number}"
            other = "refund" if outcome is None else "delivery"
            place = number % 4, len(self.pairs)
            ids = f"rollout-{candidate}", f"pair-{name}", f"p-{name}", f"user-{name}"
            self.pairs.append(Pair(*ids, "refund", other, self.primary, place))
            ticket, order = (None, None) if outcome is None else (f"ticket-{name}", number + 1)
            self.entries.append(Entry(
                f"rollout-{candidate}", f"pair-{name}", f"user-{name}", outcome is None, ticket, order,
                outcome is not None, outcome,
            ))  # fmt: skip
            if ticket is not None and outcome is not None:
                label = {1: "delivery", -1: "refund", 0: "login"}[outcome]
                place = number % 4, len(self.answers)
                self.answers.append(Answer(ticket, ticket, "ann", label, at + number, place))

    def canary(self, candidate: str, statuses: Sequence[int], at: float) -> None:
        for number, status in enumerate(statuses):
            user = f"canary-{candidate}-{number}"
            self.requests.append(Request(TASK, candidate, "canary", user, status, 50.0, at + number))

    def end(self) -> History:
        """Return the history, with its events and with samples of flags that follow the moves."""
        history = self.history
        history.moves, history.pairs, history.answers = self.moves, self.pairs, self.answers
        history.entries, history.draws, history.requests = self.entries, self.draws, self.requests
        timeline = served(self.moves)[TASK]
        history.changes = [
            Change(move.rollout_id, move.at, move.stage, serving_at(timeline, move.at), move.reason)
            for move in self.moves
        ]  # fmt: skip
        probes = dict.fromkeys(CANDIDATES, PROBES)
        samples, canary, shadow = [Sample(0.0, {TASK: Flags(None, None, False)}, {})], None, False
        for move in self.moves:
            canary = move.candidate if move.stage == "canary" else None
            shadow = move.stage in ("shadow", "canary")
            control = RULES.control_percent if move.stage == "promoted" and not move.reason else None
            flags = Flags(serving_at(timeline, move.at), canary, shadow, control)
            for late in (0.5, RULES.late_seconds + 1)[: 2 if control else 1]:
                samples.append(Sample(move.at + late, {TASK: flags}, {ENGINE: EngineState(-1_000.0, probes)}))
        history.samples = samples
        return history


def right_history() -> History:
    """Return a history in which nothing is wrong."""
    story = Story()
    story.enter("good", 100.0, 0.0)
    story.tickets("good", [1] * 45, 110.0)
    at_canary, in_the_end = max_wealth([1.0] * 30), max_wealth([1.0] * 45)
    story.move("good", "canary", 140.0, percent=25, wins=30, labels=30, wealth=at_canary)
    story.canary("good", [200] * 16, 141.0)
    story.move("good", "canary", 150.0, percent=50, wins=30, labels=30, wealth=at_canary)
    proof = {"wins": 45, "labels": 45, "wealth": in_the_end, "canary_requests": 10}
    story.move("good", "promoted", 160.0, percent=95, **proof)
    over = "its control has ended: 7 days without harm that guards or labels see"
    story.move("good", "promoted", 180.0, over, percent=95, **proof)
    story.primary = "good"
    story.enter("bad", 200.0, story.draws[-1].alpha)
    story.tickets("bad", [-1] * 25, 210.0)
    reason = "the candidate is worse: wealth against it 400 ≥ 20 after 25 losses"
    story.move("bad", "rejected", 240.0, reason, losses=25, labels=25)
    story.enter("fragile", 300.0, 0.0)
    story.tickets("fragile", [1] * 26, 310.0)
    wealth = max_wealth([1.0] * 26)
    story.move("fragile", "canary", 340.0, percent=25, wins=26, labels=26, wealth=wealth)
    story.canary("fragile", [200, *[502] * 12], 341.0)
    reason = "the canary fails too often: 12 of the 12 users with a failed request were in it, which has 25 % of users"
    story.move("fragile", "rejected", 360.0, reason, percent=25, wins=26, labels=26, wealth=wealth, canary_errors=12)
    return story.end()
