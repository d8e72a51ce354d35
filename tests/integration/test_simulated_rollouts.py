"""The rollouts that the promotion benchmark simulates, played through the real handlers on a real PostgreSQL.

After each pair and each answer the ledger and the stage must be the simulation's. `RATCHET_SIMULATED_ROLLOUTS` is how
many of each kind are played, by default one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import numpy as np
import pytest
from sqlalchemy import text

from schemas.base import Variant
from schemas.labels import LabelRequested
from schemas.rollouts import RolloutChanged, Stage
from schemas.task_settings import RolloutSettings
from services.deployer.main import MIGRATIONS
from services.deployer.storage.ledger import PostgresLedger
from services.deployer.storage.rollouts import PostgresRollouts
from services.deployer.tickets import ticket_id_of
from services.deployer.transitions import MAX_OPEN_TICKETS
from shared.settings import Settings
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from tests.benchmarks.promotion.decisions import PENDING, Next
from tests.benchmarks.promotion.walk import BETTER, EQUAL, Truth
from tests.benchmarks.promotion.year import NEVER, SCENARIOS, Lanes, Scenario
from tests.unit.deployer.fakes import Deployer, answer, deliveries, evaluated, observed, pair

pytestmark = pytest.mark.stack
ROLLOUTS = int(os.environ.get("RATCHET_SIMULATED_ROLLOUTS", "1"))
LABELS = 30
KINDS = {BETTER: 0.3, EQUAL: 0.3, Truth(0.06, 0.005): 0.4}
TRUTHS = {1: "delivery", -1: "refund", 0: "login"}
"""The right label, by outcome: production says refund, the candidate delivery."""
LANE = np.array([0])


@pytest.fixture
async def deployer(stack_settings: Settings) -> AsyncIterator[Deployer]:
    schema = f"deployer_{uuid4().hex[:8]}"
    await migrate(stack_settings, schema, MIGRATIONS)
    engine = build_engine(stack_settings, schema)
    yield Deployer(PostgresRollouts(engine), PostgresLedger(engine), max_open=MAX_OPEN_TICKETS)
    async with engine.begin() as connection:
        await connection.execute(text(f'DROP SCHEMA "{schema}" CASCADE'))
    await engine.dispose()


class Played:
    """One candidate, in the simulation and in the handlers. Of one moment there is one pair or one answer."""

    def __init__(self, deployer: Deployer, scenario: Scenario, seed: int) -> None:
        self.deployer, self.scenario, self.task = deployer, scenario, f"task-{uuid4().hex[:8]}"
        settings = {
            "max_labels": LABELS, "min_canary_users": 5, "canary_steps": (5, 25, 50), "canary_wealth": 5.0,
            "yearly_false_promotion": 0.5,
        }  # fmt: skip
        self.lanes = Lanes(scenario, KINDS, 1, seed, RolloutSettings(**settings))
        self.start = evaluated("a1", self.task, **settings)
        self.moments: set[int] = set()
        self.answered = 0

    async def play(self) -> Stage:
        lanes = self.lanes
        lanes.start(LANE, 0)
        await self.deployer.handlers.on_evaluated(self.start)
        lanes.alpha[0] = self.last.evidence.alpha
        self.moments = {int(moment) for moment in lanes.arrives[0] if moment != NEVER}
        for now in range(28 * self.scenario.pairs_a_day):
            if now in self.moments and lanes.running[0]:
                await self._happens(now)
        return self.last.stage

    async def _happens(self, now: int) -> None:
        """Play the pair or the answer of this moment, then compare."""
        lanes, drawn = self.lanes, int(self.lanes.drawn[0])
        if lanes.step[0]:
            (served,) = lanes.served(LANE, now)
            seen = [observed(self.last, number, Variant.CANARY) for number in range(min(served, 5))]
            await self.deployer.handlers.on_observed(deliveries(seen))
            if self.last.stage not in (Stage.SHADOW, Stage.CANARY):  # By the users served: before any answer of now.
                for moments in (lanes.labelled, lanes.edited):
                    moments[moments == now] += 1
        if lanes.prompt_at[0] <= now:
            await self.deployer.transitions.end(self.task, Stage.INCONCLUSIVE, "the task's prompt changed")
        for place in np.flatnonzero(lanes.arrives[0] == now):
            await self._compare(int(place))
        for place in np.flatnonzero((lanes.labelled[0] == now) | (lanes.edited[0] == now)):
            await self._answer(int(place), now)
        lanes.ask(LANE, now)
        for place in range(drawn, int(lanes.drawn[0])):
            self._take_moments(place, now)
        lanes.decide(LANE, now)
        await self._check(now)

    def _take_moments(self, place: int, now: int) -> None:
        """Move a new ticket's answers to moments at which nothing else happens."""
        for moments in (self.lanes.labelled, self.lanes.edited):
            moment = int(moments[0, place])
            if moment != NEVER:
                moment = max(moment, now + 1)
                while moment in self.moments:
                    moment += 1
                moments[0, place] = moment
                self.moments.add(moment)

    async def _compare(self, place: int) -> None:
        author = None if "no user" in self.scenario.name else ""
        betting = pair(self.last, place, ("refund", "delivery"), author)
        agreeing = pair(self.last, 1_000 + place, ("refund", "refund"))
        again = pair(self.last, 2_000 + place, ("refund", "delivery"), author)
        again = again.model_copy(update={"subject": betting.subject})  # A subject bets once.
        await self.deployer.handlers.on_compared(deliveries([agreeing, betting]))
        await self.deployer.handlers.on_compared(deliveries([again]))

    async def _answer(self, place: int, now: int) -> None:
        """A person answers, or edits, or skips, so that another is asked."""
        truth, skips = int(self.lanes.outcome[0, place]), int(self.lanes.skips[0, place])
        ticket = ticket_id_of(self.last.rollout_id, f"pair-{place}")
        if self.lanes.labelled[0, place] == now:
            for number, reviewer in enumerate(("ann", "bob")[:skips], 1):
                await self._give(ticket, reviewer, preference="cannot_tell")
                assert len(self._questions(ticket)) == min(number + 1, 2), "another person is asked, once"
            wrong = self.lanes.edited[0, place] != NEVER
            if skips < 2:
                await self._give(ticket, ("ann", "bob")[skips], label=TRUTHS[-truth if wrong else truth])
        else:
            await self._give(ticket, ("ann", "bob", "cat")[skips], label=TRUTHS[truth])

    async def _give(self, ticket: str, reviewer: str, **given: str) -> None:
        self.answered += 1
        correction = answer(self._questions(ticket)[-1], reviewer=reviewer, **given)
        later = correction.occurred_at + timedelta(seconds=self.answered)
        await self.deployer.handlers.on_corrections(deliveries([correction.model_copy(update={"occurred_at": later})]))

    def _questions(self, ticket: str) -> list[LabelRequested]:
        return [question for question in self.deployer.publisher.questions if question.ticket_id == ticket]

    async def _check(self, now: int) -> None:
        lanes, where = self.lanes, (self.scenario.name, now)
        ledger = await self.deployer.ledger.load(self.last.rollout_id)
        (outcomes,), _ = lanes.seen(LANE, np.arange(lanes.drawn[0])[None, :], now)
        seen = [None if outcome == PENDING else float(outcome) for outcome in outcomes]
        if not lanes.running[0]:  # What was drawn at its end is not asked any more.
            seen = seen[: len(ledger.outcomes)]
        assert ledger.outcomes == seen, where
        assert all(ticket.identified == ("no user" not in self.scenario.name) for ticket in ledger.tickets)
        stage = Stage.CANARY if lanes.step[0] else Stage.SHADOW
        assert not lanes.running[0] or self.last.canary_percent == lanes.percents[lanes.step[0]], where
        if not lanes.running[0]:
            (end,) = lanes.ends
            stage = {
                Next.PROMOTED.name: Stage.PROMOTED, Next.SPENT.name: Stage.INCONCLUSIVE, "PROMPT": Stage.INCONCLUSIVE,
            }.get(end, Stage.REJECTED)  # fmt: skip
        assert self.last.stage is stage, (*where, self.last.reason)

    @property
    def last(self) -> RolloutChanged:
        return [change for change in self.deployer.publisher.changes if change.task == self.task][-1]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_a_simulated_rollout_is_what_the_real_handlers_make_of_it(deployer: Deployer, scenario: Scenario) -> None:
    ends = {await Played(deployer, scenario, seed).play() for seed in range(ROLLOUTS)}
    assert ends
