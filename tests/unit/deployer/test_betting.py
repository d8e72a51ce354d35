"""The betting test has the error rates and label counts of STATISTICS.md. Fixed seeds; small Monte Carlo."""

from __future__ import annotations

import bisect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.deployer.statistics.betting import canary_guard, futility, max_wealth, wealth

ALPHA = 0.05 / 52
WEEK_BAR = 1 / ALPHA


def wins_until(bar: float) -> int:
    wins = 0
    while wealth(wins, 0, 0) < bar:
        wins += 1
    return wins


def paths(win: float, tie: float, runs: int, tickets: int, seed: int) -> np.ndarray:
    """Outcomes of discordant pairs, shape (runs, tickets)."""
    generator = np.random.default_rng(seed)
    return generator.choice([1.0, 0.0, -1.0], size=(runs, tickets), p=[win, tie, 1 - win - tie])


def wins_needed(tickets: int, bar: float) -> int:
    """The fewest wins in so many decisive tickets that reach the bar."""
    return bisect.bisect_left(range(tickets + 1), bar, key=lambda wins: wealth(wins, 0, tickets - wins))


def crossing(outcomes: np.ndarray, bar: float) -> np.ndarray:
    """First ticket (from 1) at which wealth reaches the bar, per run; 0: never. All runs at once."""
    wins = np.cumsum(outcomes > 0, axis=1)
    needed = np.array([wins_needed(tickets, bar) for tickets in range(1, outcomes.shape[1] + 1)])
    reached = wins >= needed
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, 0)


def test_ten_straight_wins_earn_a_canary_and_nineteen_a_promotion() -> None:
    assert wins_until(20) == 10
    assert wins_until(WEEK_BAR) == 19


def test_pairs_that_agree_cost_nothing() -> None:
    assert wealth(12, 5_000, 3) == wealth(12, 0, 3)


def test_wealth_starts_at_one_for_every_margin() -> None:
    assert wealth(0, 0, 0) == pytest.approx(1.0)
    assert wealth(0, 0, 0, margin=-0.02) == pytest.approx(1.0)


@pytest.mark.parametrize("margin", [0.0, 0.3, -0.02])
def test_expected_wealth_at_the_null_stays_one(margin: float) -> None:
    win = 0.3 + margin / 2
    loss = 0.3 - margin / 2
    expected = win * wealth(1, 0, 0, margin) + 0.4 * wealth(0, 1, 0, margin) + loss * wealth(0, 0, 1, margin)
    assert expected == pytest.approx(1.0)


@settings(max_examples=20)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=40), st.randoms())
def test_wealth_depends_on_counts_alone_and_never_on_order(outcomes: list[float], random: object) -> None:
    counted = wealth(outcomes.count(1.0), outcomes.count(0.0), outcomes.count(-1.0))
    assert max_wealth(outcomes) >= counted * (1 - 1e-9)
    ordered = sorted(outcomes)  # Losses first: no prefix is better than the whole.
    assert max_wealth(ordered) == pytest.approx(max(counted, 1.0))


@settings(max_examples=20)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0, None]), max_size=30))
def test_a_pending_ticket_never_helps(outcomes: list[float | None]) -> None:
    for position, outcome in enumerate(outcomes):
        if outcome is None:
            for truth in (-1.0, 0.0, 1.0):
                labelled = [*outcomes[:position], truth, *outcomes[position + 1 :]]
                assert max_wealth(labelled) >= max_wealth(outcomes) * (1 - 1e-9)


def test_unanswered_tickets_at_the_end_do_not_take_a_proof_away() -> None:
    proven = [1.0] * 19
    assert max_wealth([*proven, *[None] * 50]) == pytest.approx(max_wealth(proven))


def test_a_split_vote_bets_its_mean() -> None:
    assert wealth(0, 0, 0) < max_wealth([0.5]) < max_wealth([1.0])


def test_equal_candidates_are_promoted_less_often_than_alpha() -> None:
    equal = paths(win=0.5, tie=0.0, runs=4_000, tickets=150, seed=20)
    assert (crossing(equal, 20) > 0).mean() <= 0.05
    assert (crossing(equal, WEEK_BAR) > 0).mean() <= 2 * ALPHA  # Monte Carlo error at 4,000 runs.


def test_slow_labels_of_losses_do_not_promote_an_equal_candidate() -> None:
    """Wins are labelled at once, losses 30 tickets late. Only betting by arrival would promote."""
    crossed = 0
    for path in paths(win=0.5, tie=0.0, runs=60, tickets=60, seed=4):
        for drawn in range(5, 61, 5):
            labelled = [None if x < 0 and position > drawn - 30 else x for position, x in enumerate(path[:drawn])]
            if max_wealth(labelled) >= 20:
                crossed += 1
                break
    assert crossed <= 3 + 3  # 5 % of 60, and two standard errors.


def test_a_candidate_two_points_better_needs_as_many_labels_as_the_statistics_table_states() -> None:
    """Discordance .04/.02: two of three decisive labels are wins. The table: 46 to the canary, 118 to everyone."""
    better = paths(win=2 / 3, tie=0.0, runs=1_000, tickets=300, seed=1)
    assert 40 <= np.median(crossing(better, 20)) <= 52
    to_all = crossing(better, WEEK_BAR)
    reached = to_all[to_all > 0]
    assert 108 <= np.median(np.where(to_all > 0, to_all, 10_000)) <= 128
    assert len(reached) / len(to_all) >= 0.9


def test_the_opposite_bet_and_futility_reject_a_worse_candidate_early() -> None:
    assert wealth(9, 0, 0) < 20 <= wealth(10, 0, 0), "ten losses in a row are ten wins of the opposite bet"
    assert futility([-1.0] * 6) < 10 <= futility([-1.0] * 7)
    assert futility([None] * 7) == 1.0, "tickets without a label are not held against a candidate"


def test_futility_costs_little_power_for_a_better_candidate() -> None:
    runs = paths(win=2 / 3, tie=0.0, runs=150, tickets=120, seed=9)
    assert np.mean([futility(list(path)) >= 10 for path in runs]) <= 0.1


def test_the_canary_guard_is_rarely_wrong_and_detects_a_broken_canary() -> None:
    generator = np.random.default_rng(3)
    null = 0.05 * 1.5 / (0.05 * 1.5 + 0.95)
    false_alarms = 0
    for path in generator.random((300, 60)) < null:
        bad = np.cumsum(path)
        false_alarms += any(canary_guard(int(bad[n]), n + 1, 0.05, 1.5) >= 20 for n in range(60))
    assert false_alarms / 300 <= 0.05
    assert canary_guard(3, 4, 0.05, 1.5) >= 20
    assert canary_guard(0, 0, 0.05, 1.5) == 1.0
