"""The promotion benchmark measures the deployer's own decisions: arrays and walks decide as `decide` does."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from schemas.rollouts import Stage
from schemas.task_settings import RolloutSettings
from services.deployer.domain import Ledger, Ticket, decide
from services.deployer.statistics.betting import wealth
from services.deployer.statistics.canary import CanaryCounts
from tests.benchmarks.promotion import pairs
from tests.benchmarks.promotion.claims import both_claims
from tests.benchmarks.promotion.decisions import PENDING, UNDRAWN, Decisions, Next, Prefix, Rollouts
from tests.benchmarks.promotion.pairs import Canary, not_worse
from tests.benchmarks.promotion.rivals import LABELS, all_rivals
from tests.benchmarks.promotion.walk import (
    BETTER,
    EQUAL,
    LEVEL,
    Truth,
    any_false_promotion,
    first_hits,
    quantile_labels,
    regions,
)
from tests.benchmarks.promotion.year import ALL_EQUAL, MIXED, SCENARIOS, WORSE, Scenario, Years, simulate

REASONS = {
    "the candidate is worse": Next.HARM,
    "the candidate is unlikely": Next.FUTILE,
    "nothing to promote": Next.NOTHING_DIFFERS,
    "all ": Next.SPENT,
    "28 days": Next.EXPIRED,
}


def named(stage: Stage, outcomes: list[float | None], alpha: float, settings: RolloutSettings, age: int = 0) -> Next:
    """The deployer's decision about these tickets, in the canary's last step or before it."""
    canary = CanaryCounts(percent=settings.canary_steps[-1] if stage is Stage.CANARY else 0)
    return of_ledger(stage, Ledger([Ticket(outcome) for outcome in outcomes], canary=canary), alpha, settings, age)


def of_ledger(stage: Stage, ledger: Ledger, alpha: float, settings: RolloutSettings, age: int) -> Next:
    decision = decide(stage, ledger, alpha, settings, timedelta(days=age))
    if decision is None:
        return Next.STAYS
    if decision.stage in (Stage.CANARY, Stage.PROMOTED):
        return {Stage.CANARY: Next.CANARY, Stage.PROMOTED: Next.PROMOTED}[decision.stage]
    return next(end for start, end in REASONS.items() if decision.reason.startswith(start))


def test_thousands_at_once_are_decided_as_the_deployer_decides_each() -> None:
    random, size, settings = np.random.default_rng(20), 3_000, RolloutSettings(max_labels=60)
    outcomes = np.full((size, 60), UNDRAWN, dtype=np.int8)
    for row in range(size):
        drawn, win = random.choice([0, random.integers(1, 61), 60]), random.choice([0.2, 0.5, 0.7, 0.95])
        pending = random.choice([0.0, 0.05, 0.3])
        rates = [win * (1 - pending), 0.1 * (1 - pending), (0.9 - win * 0.9) * (1 - pending), pending]
        rates = np.array(rates) / sum(rates)
        outcomes[row, :drawn] = random.choice([1, 0, -1, PENDING], size=drawn, p=rates)
        if random.random() < 0.3:  # A streak, then the opposite: what was proven is not what the labels say now.
            outcomes[row, : drawn // 2] = np.sort(outcomes[row, : drawn // 2])[:: random.choice([-1, 1])]
    rollouts = Rollouts(
        outcomes=outcomes,
        step=random.integers(0, 4, size),
        alpha=random.choice([LEVEL, 0.05, 0.3], size),
        age=random.choice([1.0, 29.0], size, p=[0.8, 0.2]),
        served=random.choice([0, 24, 25, 80], size),
        agreeing=random.choice([0, 999, 1_000], size),
    )
    decisions = Decisions(settings)
    found = [Next(code) for code in decisions.decide(rollouts)]
    final = np.logical_and.accumulate(np.isin(outcomes, (-1, 0, 1)), axis=1).sum(axis=1)
    first, rest = random.integers(0, final + 1), np.full_like(outcomes, UNDRAWN)
    for row in range(size):
        rest[row, : 60 - first[row]] = outcomes[row, first[row] :]
    prefix = decisions.extend(Prefix.empty(size), outcomes, first)
    assert (decisions.decide(replace(rollouts, outcomes=rest), prefix) == found).all(), "from any prefix on"
    for row in range(size):
        step, served = int(rollouts.step[row]), int(rollouts.served[row])
        canary = CanaryCounts(served, percent=(0, *settings.canary_steps)[step], users=served)
        values = [None if x == PENDING else float(x) for x in outcomes[row] if x != UNDRAWN]
        ledger = Ledger([Ticket(value) for value in values], int(rollouts.agreeing[row]), canary)
        stage = Stage.CANARY if step else Stage.SHADOW
        expected = of_ledger(stage, ledger, float(rollouts.alpha[row]), settings, int(rollouts.age[row]))
        assert found[row] is expected, (row, values, rollouts.alpha[row], stage)
    assert set(found) == set(Next), "every decision was met"


def test_a_walk_ends_where_the_deployer_ends_the_rollout() -> None:
    random = np.random.default_rng(7)
    settings = RolloutSettings(canary_steps=(5,), min_canary_users=0, max_labels=120)
    ends, seen = regions(LEVEL, settings), set()
    names = {"harm": Next.HARM, "promoted": Next.PROMOTED, "futile": Next.FUTILE, "spent": Next.SPENT}
    for win in (0.1, 0.5, 0.55, 0.75, 0.95):
        for _ in range(6):
            outcomes: list[float | None] = []
            stage, wins, end = Stage.SHADOW, 0, Next.STAYS
            while end is Next.STAYS:
                outcomes.append(1.0 if random.random() < win else -1.0)
                wins += outcomes[-1] == 1.0
                decided = named(stage, outcomes, LEVEL, settings)
                if decided is Next.CANARY:
                    assert ends["canary"][wins, len(outcomes) - wins]
                    stage, decided = Stage.CANARY, named(Stage.CANARY, outcomes, LEVEL, settings)
                end = decided
                hit = [names[name] for name, region in ends.items()
                       if name != "canary" and region[wins, len(outcomes) - wins]]  # fmt: skip
                assert hit == ([] if end is Next.STAYS else [end]), (wins, len(outcomes))
            seen.add(end)
    assert {Next.PROMOTED, Next.FUTILE, Next.SPENT} <= seen


def test_a_walk_has_the_chances_of_a_simulation() -> None:
    found = {end: region for end, region in regions(LEVEL).items() if end != "canary"}
    hits = first_hits(found, BETTER.share)
    assert sum(at.sum() for at in hits.values()) == pytest.approx(1.0), "every rollout ends"
    random = np.random.default_rng(3)
    wins = np.cumsum(random.random((4_000, 300)) < BETTER.share, axis=1)
    at = wins, np.arange(1, 301) - wins
    first = {end: np.where(region[at].any(axis=1), region[at].argmax(axis=1), 999) for end, region in found.items()}
    promoted = (first["promoted"] < np.minimum(first["harm"], first["futile"])) & (first["promoted"] < 999)
    assert promoted.mean() == pytest.approx(hits["promoted"].sum(), abs=0.012)
    assert quantile_labels(hits["promoted"]) == 118


def test_non_inferiority_is_walked_as_a_simulation_has_it() -> None:
    truth, margin, alpha = Truth(0.05, 0.05), 0.05, 0.05
    random = np.random.default_rng(4)
    drawn = random.choice([1, 0, -1], size=(100, 1_000), p=[truth.win, 1 - truth.discordance, truth.loss])
    proven = []
    for run in drawn:
        wins, losses = np.cumsum(run == 1), np.cumsum(run == -1)
        counted = ((n, int(wins[n - 1]), int(losses[n - 1])) for n in range(20, 1_001, 20))
        reached = (n for n, won, lost in counted if wealth(won, n - won - lost, lost, -margin) >= 1 / alpha)
        proven.append(next(reached, 9_999))
    found = not_worse(truth, margin, alpha)
    assert float(np.median(proven)) == pytest.approx(found.median, rel=0.25)
    assert np.mean(np.array(proven) <= 1_000) == pytest.approx(found.hits[:1_001].sum(), abs=0.1)
    assert not_worse(Truth(0.02, 0.07), margin, alpha).power <= alpha, "at the margin itself"


def test_where_being_not_worse_promotes_an_equal_candidate_mostly_is_and_one_at_the_margin_is_not() -> None:
    equal, worse = (both_claims(truth, 0.0, runs=12) for truth in (EQUAL, WORSE))
    assert equal.not_worse >= 0.75 and equal.labels < 250
    assert (worse.better, worse.not_worse) == (0.0, 0.0)


def test_a_walked_year_has_the_chances_of_a_simulated_one() -> None:
    found = simulate(SCENARIOS[0], ALL_EQUAL, 400)
    exact = any_false_promotion(ALL_EQUAL, BETTER)
    assert exact == pytest.approx(0.033, abs=0.001)
    assert found.false / 400 == pytest.approx(exact, abs=0.025)


def test_every_rival_is_measured_on_the_same_truths() -> None:
    ours, naive, fixed, asymptotic, expectation, unpaired = all_rivals(0.05)
    assert ours.labels == 46
    assert naive.false > 0.2 > 0.05 >= ours.false
    assert fixed.power >= 0.95 and fixed.false <= 0.05
    assert expectation.false <= 0.05 and asymptotic.labels < LABELS
    assert unpaired.labels > 10 * ours.labels, "without pairs every answer costs a label"


def played(**changes: object) -> Years:
    return simulate(Scenario("changed", **changes), ALL_EQUAL, 10)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def usual() -> Years:
    return played()


def test_a_simulated_year_has_what_its_scenario_says(usual: Years) -> None:
    assert usual.candidates == pytest.approx(10 * 52, rel=0.01)
    assert set(usual.ends) <= {end.name for end in Next}
    assert played(counted=0.5).labels < usual.labels
    assert played(lost_losses=0.2).ends["EXPIRED"] > 25, (
        "open questions block the next ones until the candidate expires"
    )
    assert played(changed=0.5).ends["PROMPT"] > 0.2 * usual.candidates
    assert played(pairs_a_day=230).candidates < usual.candidates, "a candidate waits while another runs"
    assert played(days_between=1.0).candidates > 2 * usual.candidates
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS) >= 11


def test_a_simulated_year_promotes_better_candidates_and_counts_the_others() -> None:
    mixed = simulate(SCENARIOS[0], MIXED, 60)
    assert mixed.better_promoted / mixed.better > 0.9
    careless = simulate(SCENARIOS[0], {Truth(0.0399, 0.0201): 1.0}, 20)
    assert careless.false == 20, "whoever is not BETTER counts as falsely promoted"
    assert mixed.upper > mixed.false / 60


def test_one_users_pairs_bet_once(usual: Years) -> None:
    """All of one user's labels agree with each other. Were they counted apart, equal candidates would be promoted."""
    alone = played(one_user=0.9)
    assert alone.false <= 1
    assert alone.labels < usual.labels
    assert EQUAL.share == 0.5


@pytest.mark.parametrize(
    ("canary", "shared"),
    [(Canary.HEALTHY, 1.0), (Canary.AT_LIMIT, 0.0), (Canary.BUSY_HOUR, 0.0), (Canary.BUSY_HOUR, 1.0)],
)
def test_all_guards_together_end_few_healthy_canaries_however_their_events_come_together(
    canary: Canary, shared: float
) -> None:
    assert pairs.all_guards_stop(canary, shared, runs=500).upper <= 0.05


def test_guards_that_spend_the_level_each_are_seen_by_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "together", lambda evidence: np.maximum.reduce(list(evidence.values())))
    assert pairs.all_guards_stop(Canary.AT_LIMIT, 0.0, runs=300).upper > 0.05
