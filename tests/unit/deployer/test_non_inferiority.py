"""Not worse by more than a margin: the wealth against values computed here, its level, and the year's margin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from services.deployer.domain import Ledger, Ticket
from services.deployer.statistics.betting import max_wealth
from services.deployer.statistics.non_inferiority import Allowance, Bets, Promotion, margin_left

NOW = datetime(2026, 11, 23, tzinfo=UTC)
BETS = [(2 * j + 1) / 40 for j in range(20)]
SHARES = [bet**3 * (1 - bet) ** 7 for bet in BETS]
FIRST = {1.0: 0.2, 0.0: 0.4, -1.0: 0.4}
"""Chances of a subject's first pair: worse by 0.2."""
LATER = {1.0: 0.3, 0.0: 0.4, -1.0: 0.3}
SUBJECTS = [*(((x,), FIRST[x]) for x in (1.0, -1.0)), *(((0.0, x), FIRST[0.0] * LATER[x]) for x in LATER)]
"""Pairs of a subject until one differs, two at most, and their chance."""


def mixture(factors: Sequence[tuple[float, float]]) -> float:
    """The definition: of each bet the product of 1 + bet (x - mean), weighed."""
    wealths = (math.prod(1 + bet * (x - mean) for x, mean in factors) for bet in BETS)
    return sum(share * wealth for share, wealth in zip(SHARES, wealths, strict=True)) / sum(SHARES)


def ledger_of(subjects: Sequence[Sequence[float]]) -> Ledger:
    """The ledger after these subjects' pairs, one subject after the other; every ticket has its label."""
    tickets, agreeing = [], 0
    for pairs in subjects:
        agreeing += pairs[0] == 0.0
        tickets += [Ticket(x, opens=n == 0, agreeing=agreeing) for n, x in enumerate(pairs) if x]
    return Ledger(tickets, agreeing_subjects=agreeing)


def histories(count: int, error: float = 0.0) -> Iterator[tuple[float, Ledger]]:
    """Every history of so many subjects, with its chance; labels are wrong at this rate."""
    seen = [(pairs, chance) for pairs, chance in SUBJECTS if not pairs[-1]]
    for pairs, chance in SUBJECTS:
        if pairs[-1]:
            wrong = (*pairs[:-1], -pairs[-1])
            seen += [(pairs, chance * (1 - error)), (wrong, chance * error)]
    merged: dict[tuple[float, ...], float] = {}
    for pairs, chance in seen:
        merged[pairs] = merged.get(pairs, 0.0) + chance
    for chosen in product(merged.items(), repeat=count):
        yield math.prod(chance for _, chance in chosen), ledger_of([pairs for pairs, _ in chosen])


def test_the_wealth_is_its_definition_at_every_prefix() -> None:
    subjects = [(0.0, 0.0), (1.0,), (0.0, -1.0), (0.0,), (-1.0,)]
    allowance, mean = Allowance(0.2, 0.1), -0.16
    first = [(0.0, mean), (1.0, mean)]
    prefixes = [
        first[:1], [*first, (0.0, mean)], [*first, (0.0, mean), (-1.0, 0.0), (0.0, mean)],
        [*first, (0.0, mean), (-1.0, 0.0), (0.0, mean), (-1.0, mean)],
    ]  # fmt: skip
    wealths = [mixture(prefix) for prefix in prefixes]
    assert ledger_of(subjects).bets.wealth(allowance) == pytest.approx(max(wealths), rel=1e-9)
    assert ledger_of(subjects).bets.wealth_now(allowance) == pytest.approx(wealths[-1], rel=1e-9)


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_at_the_margin_itself_wealth_is_a_fair_game_and_crosses_at_most_as_often_as_alpha(error: float) -> None:
    """Exactly, over every history of four subjects; whoever agrees at first may differ later, and is then no better."""
    allowance, bar = Allowance(0.2, error), 1.5
    mean = crossed = total = 0.0
    for chance, ledger in histories(4, error):
        total += chance
        mean += chance * ledger.bets.wealth_now(allowance)
        crossed += chance * (ledger.bets.wealth(allowance) >= bar)
    assert (total, mean) == (pytest.approx(1.0), pytest.approx(1.0, abs=1e-12))
    assert 0.05 < crossed <= 1 / bar


def test_both_claims_share_one_level_since_whoever_proves_to_be_better_has_proven_not_to_be_worse() -> None:
    """For every history, with labels that are missing: so either claim is false no more often than one of them."""
    for _, ledger in histories(4):
        for missing in (-1, 0, len(ledger.tickets) - 1):
            tickets = [
                Ticket(None if n == missing else ticket.outcome, opens=ticket.opens, agreeing=ticket.agreeing)
                for n, ticket in enumerate(ledger.tickets)
            ]
            seen = Ledger(tickets, agreeing_subjects=ledger.agreeing_subjects)
            assert seen.bets.wealth(Allowance(0.005)) >= max_wealth(seen.outcomes) - 1e-12


def test_a_ticket_drawn_before_its_turn_lets_no_later_pair_that_agrees_count_before_the_ones_that_wait() -> None:
    """The second one, whose candidate erred, was drawn at once; the third waited, and the pairs after it, too."""
    tickets = [Ticket(1.0, agreeing=5), Ticket(-1.0, asked=False, agreeing=40), Ticket(None, agreeing=12)]
    assert Ledger(tickets, agreeing_subjects=50).bets.agreeing == [5, 12, 12, 50]


def test_a_label_that_is_missing_counts_as_lost_but_not_in_the_wealth_as_it_stands() -> None:
    allowance = Allowance(0.02)
    pending, lost, without = (
        Bets(outcomes, [True] * len(outcomes), [900] * (len(outcomes) + 1)) for outcomes in ([None], [-1.0], [])
    )
    assert pending.wealth(allowance) == lost.wealth(allowance)
    assert pending.wealth_now(allowance) == without.wealth_now(allowance) > lost.wealth_now(allowance)


def test_the_margin_that_is_debited_is_the_least_that_is_proven_of_what_is_left() -> None:
    allowance, alpha = Allowance(0.02), 0.05
    bets = Bets([1.0, -1.0] * 5, [True] * 10, [*range(0, 1_000, 100), 1_500])
    least = bets.least_margin(allowance, alpha)
    assert 0.005 < least < 0.02
    assert bets.wealth(allowance, least) >= 1 / alpha > bets.wealth(allowance, least - 0.001)
    assert bets.least_margin(Allowance(0.004), alpha) == 0.004, "nothing less is proven"
    assert bets.subjects == 1_510


@pytest.mark.parametrize(("margin", "error"), [(0.0, 0.0), (-0.02, 0.0), (0.02, 0.5), (1.0, 0.0)])
def test_a_margin_that_proves_nothing_is_refused(margin: float, error: float) -> None:
    with pytest.raises(ValueError, match="expected a margin"):
        Allowance(0.02, error).labelled(margin)


def days_ago(days: int, margin: float = 0.0, *, stands: bool = True) -> Promotion:
    return Promotion(NOW - timedelta(days=days), margin, stands)


def test_a_year_gives_away_two_points_at_most() -> None:
    assert margin_left([], NOW) == 0.02
    assert margin_left([days_ago(50, 0.005), days_ago(90)], NOW) == 0.015
    assert margin_left([days_ago(50), days_ago(90, 0.015)], NOW) == 0.005, "a year is a year"
    assert margin_left([days_ago(50), days_ago(400, 0.015)], NOW) == 0.02
    assert margin_left([days_ago(450), days_ago(400, 0.015)], NOW) == 0.005, "no champion since"
    assert margin_left([days_ago(9, 0.01), days_ago(5, 0.01), days_ago(400)], NOW) == 0.0
    assert margin_left([days_ago(9, 0.02), days_ago(5, 0.02)], NOW) == 0.0


def test_a_champion_that_was_taken_back_is_none_and_a_margin_stays_debited() -> None:
    assert margin_left([days_ago(450), days_ago(400, 0.015), days_ago(10, stands=False)], NOW) == 0.005
    assert margin_left([days_ago(90), days_ago(50, 0.015, stands=False)], NOW) == 0.005
