"""Bounds, margins and forecasts against values that are computed here, by other means than the product's."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
from scipy.stats import nbinom

from services.deployer.domain import Ledger, Ticket
from services.deployer.statistics.betting import wealth, wealth_of_outcomes
from services.deployer.statistics.bounds import interval, lower_bound
from services.deployer.statistics.forecast import labels_expected, proof_distribution

BETS = [Fraction(2 * j + 1, 40) for j in range(20)]
SHARES = [bet**3 * (1 - bet) ** 7 for bet in BETS]
YEAR = 0.05 / 52


def exact_wealth(wins: int, ties: int, losses: int, margin: Fraction = Fraction(0)) -> Fraction:
    """The definition, in fractions."""
    bets = [bet / (1 + margin) if margin > 0 else bet for bet in BETS]
    products = [
        (1 + bet * (1 - margin)) ** wins * (1 - bet * margin) ** ties * (1 - bet * (1 + margin)) ** losses
        for bet in bets
    ]
    return sum(share * value for share, value in zip(SHARES, products, strict=True)) / sum(SHARES)


def definition(wins: int, ties: int, losses: int, margin: float) -> float:
    """The same in floats: within the range of these tests, and faster."""
    bets = [float(bet) / (1 + max(margin, 0.0)) for bet in BETS]
    products = (
        (1 + bet * (1 - margin)) ** wins * (1 - bet * margin) ** ties * (1 - bet * (1 + margin)) ** losses
        for bet in bets
    )
    return sum(float(share) * value for share, value in zip(SHARES, products, strict=True)) / float(sum(SHARES))


def ever_reaches(bar: float, win: float, tie: float, margin: Fraction, pairs: int) -> float:
    """The exact probability that wealth reaches the bar within so many pairs, by walking all counts."""
    alive, reached = {(0, 0): 1.0}, 0.0
    for number in range(1, pairs + 1):
        following: dict[tuple[int, int], float] = {}
        for (wins, losses), chance in alive.items():
            for step, rate in (((1, 0), win), ((0, 0), tie), ((0, 1), 1 - win - tie)):
                counts = wins + step[0], losses + step[1]
                following[counts] = following.get(counts, 0.0) + chance * rate
        alive = {}
        for (wins, losses), chance in following.items():
            if definition(wins, number - wins - losses, losses, float(margin)) >= bar:
                reached += chance
            else:
                alive[wins, losses] = chance
    return reached


@pytest.mark.parametrize("margin", [Fraction(0), Fraction(-1, 50), Fraction(3, 10)])
def test_wealth_is_its_definition_in_fractions(margin: Fraction) -> None:
    for wins, ties, losses in product((0, 3, 40), (0, 25), (0, 2, 17)):
        expected = float(exact_wealth(wins, ties, losses, margin))
        assert wealth(wins, ties, losses, float(margin)) == pytest.approx(expected, rel=1e-9)
        outcomes = [1.0] * wins + [-1.0] * losses
        assert wealth_of_outcomes(outcomes, ties, float(margin)) == pytest.approx(expected, rel=1e-9)


def test_the_lower_bound_is_the_margin_at_which_wealth_falls_below_the_bar() -> None:
    for wins, losses, agreeing, alpha in product((12, 60), (0, 20), (0, 940), (0.05, YEAR)):
        low = lower_bound([1.0] * wins + [-1.0] * losses, agreeing, alpha)
        below, above = (Fraction(low + step).limit_denominator(10**9) for step in (-1e-6, 1e-6))
        assert float(exact_wealth(wins, agreeing, losses, below)) >= 1 / alpha
        assert float(exact_wealth(wins, agreeing, losses, above)) < 1 / alpha


def test_no_mean_is_below_its_lower_bound_more_often_than_alpha_at_any_time() -> None:
    """The lower bound passes the true mean when the wealth against it reaches 1/alpha: exactly computed."""
    for win, tie in ((0.04, 0.94), (0.5, 0.3), (0.3, 0.4)):
        mean = Fraction(win - (1 - win - tie)).limit_denominator(1_000)
        assert 0 < ever_reaches(10, win, tie, mean, 40) <= 0.1


def test_a_candidate_is_proven_when_the_lower_bound_is_above_zero() -> None:
    outcomes = [1.0] * 18
    assert lower_bound(outcomes, 500, YEAR) < 0 < lower_bound([*outcomes, 1.0], 500, YEAR)


def test_tickets_without_a_label_widen_the_interval_on_both_sides() -> None:
    labelled = [1.0] * 40 + [-1.0] * 20
    (low, high), (wider_low, wider_high) = interval(labelled, 940), interval([*labelled, *[None] * 10], 930)
    assert wider_low < low < 0.02 < high < wider_high
    assert interval([], 0) == interval([None] * 3, 0) == (-1.0, 1.0)


def test_the_interval_of_the_opposite_outcomes_is_the_opposite_interval() -> None:
    outcomes = [1.0] * 9 + [-1.0] * 3 + [0.5]
    low, high = interval(outcomes, 30)
    assert low == pytest.approx(lower_bound(outcomes, 30, 0.025)), "both sides together: 95 %"
    assert interval([-1.0] * 9 + [1.0] * 3 + [-0.5], 30) == pytest.approx((-high, -low), abs=1e-6)


def test_evidence_has_the_interval_and_the_labels_still_expected() -> None:
    tickets = [Ticket(outcome) for outcome in (*[1.0] * 40, *[-1.0] * 20, 0.0, None)]
    evidence = Ledger(tickets, agreeing=938).evidence(YEAR)
    assert (evidence.gain_low, evidence.gain_high) == interval([ticket.outcome for ticket in tickets], 938)
    assert evidence.labels_expected == labels_expected(40, 1, 20, YEAR)


@pytest.mark.parametrize("alpha", [0.05, YEAR])
def test_the_median_of_labels_is_that_of_an_exact_walk(alpha: float) -> None:
    """Two of three decisive labels are wins."""
    alive, reached, decisive = {0: 1.0}, [0.0], 0
    while sum(reached) < 0.75:
        decisive += 1
        following: dict[int, float] = {}
        for wins, chance in alive.items():
            following[wins + 1] = following.get(wins + 1, 0.0) + chance * 2 / 3
            following[wins] = following.get(wins, 0.0) + chance / 3
        proven = {wins for wins in following if definition(wins, 0, decisive - wins, 0.0) >= 1 / alpha}
        reached.append(sum(following[wins] for wins in proven))
        alive = {wins: chance for wins, chance in following.items() if wins not in proven}
    median = next(labels for labels in range(decisive) if sum(reached[: labels + 1]) >= 0.5)
    assert median == {0.05: 46, YEAR: 118}[alpha]
    assert proof_distribution(2 / 3, alpha)[: decisive + 1] == pytest.approx(reached, abs=1e-12)


@pytest.mark.parametrize(("alpha", "labels"), [(0.05, 255), (YEAR, 701)])
def test_preferences_with_a_small_difference_need_hundreds_of_labels(alpha: float, labels: int) -> None:
    """30 % won, 20 % lost, half of all alike."""
    reached = proof_distribution(0.6, alpha)

    def proven(within: int) -> float:
        return float(sum(chance * nbinom.cdf(within - k, k, 0.5) for k, chance in enumerate(reached) if chance))

    assert proven(labels - 1) < 0.5 <= proven(labels)


def test_labels_expected_are_the_median_of_polyas_urn() -> None:
    """Ten straight wins reach 20. After five, the next five are won with 6/7 · 7/8 · … · 10/11 = 6/11 > 1/2."""
    assert labels_expected(10, 0, 0, 0.05) == 0
    assert labels_expected(5, 0, 0, 0.05) == 5
    assert labels_expected(0, 0, 0, YEAR) is None, "nothing is known, so nothing is promised"
    assert labels_expected(5, 0, 9, YEAR) is None
    some, more = labels_expected(30, 0, 10, YEAR), labels_expected(30, 40, 10, YEAR)
    assert some is not None and more is not None and 1.9 * some < more < 2.1 * some, "every second label is a tie"
