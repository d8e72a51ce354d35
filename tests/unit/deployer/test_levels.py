"""How alpha accrues: what candidates draw of a year, whatever their rhythm."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from services.deployer.statistics.levels import LEAST, Draw, level, next_draw

NOW = datetime(2026, 11, 26, tzinfo=UTC)
WEEKLY = 0.05 / 52


def drawn_every(days: float, years: float = 1.0, cycles: int = 52) -> list[Draw]:
    draws: list[Draw] = []
    at = NOW
    while at < NOW + timedelta(days=365 * years):
        draws.append(Draw(at, next_draw(0.05, cycles, draws, at), 0.0))
        at += timedelta(days=days)
    return draws


def test_a_tasks_first_candidate_draws_a_cycles_share_and_the_next_what_has_accrued() -> None:
    assert next_draw(0.05, 52, [], NOW) == pytest.approx(WEEKLY)
    first = Draw(NOW, WEEKLY, WEEKLY)
    for days, amount in ((1, 0.05 / 365), (3.5, 0.05 * 3.5 / 365), (7, 0.05 * 7 / 365), (8, WEEKLY), (200, WEEKLY)):
        assert next_draw(0.05, 52, [first], NOW + timedelta(days=days)) == pytest.approx(amount), days


def test_nothing_has_accrued_in_the_same_moment_or_by_a_clock_that_went_back() -> None:
    assert next_draw(0.05, 52, [Draw(NOW, WEEKLY, WEEKLY)], NOW) == LEAST
    assert next_draw(0.05, 52, [Draw(NOW, WEEKLY, WEEKLY)], NOW - timedelta(days=1)) == LEAST


@pytest.mark.parametrize("days", [0.4, 1, 3, 7, 10, 30])
def test_the_draws_of_any_year_are_at_most_the_years_alpha_however_often_candidates_come(days: float) -> None:
    draws = drawn_every(days, years=2.2)
    for first in range(0, len(draws), max(1, len(draws) // 50)):
        year = [d.amount for d in draws[first:] if d.at - draws[first].at < timedelta(days=365)]
        assert sum(year) <= 0.05 + LEAST * len(year)
    if days <= 7:
        assert sum(d.amount for d in draws if d.at - NOW < timedelta(days=365)) == pytest.approx(0.05, rel=1e-3)


def test_the_order_of_the_ledger_makes_no_difference() -> None:
    draws = drawn_every(5)
    shuffled = random.Random(1).sample(draws, len(draws))
    at = draws[-1].at + timedelta(days=2)
    assert next_draw(0.05, 52, shuffled, at) == next_draw(0.05, 52, draws, at)


def test_a_promoted_predecessor_gives_its_level_back_and_none_is_above_the_years() -> None:
    assert level(0.05, 52, WEEKLY, 0.0, [], NOW) == pytest.approx(WEEKLY)
    assert level(0.05, 52, WEEKLY, 0.2 * WEEKLY, [], NOW) == pytest.approx(1.2 * WEEKLY)
    assert level(0.05, 52, WEEKLY, WEEKLY, [], NOW) == pytest.approx(1.5 * WEEKLY)
    assert level(0.05, 1, 0.05, 0.05, [], NOW) == 0.05


def test_what_the_tests_of_a_year_have_spent_is_not_given_back_on_top() -> None:
    """After a year of promotions, each of which gives its level back, the next year promoted falsely in 7 %."""
    spent = [Draw(NOW - timedelta(days=days), 0.0, 0.02) for days in (100, 364, 366)]
    assert level(0.05, 2, 0.025, 0.02, spent, NOW) == pytest.approx(0.01), "the oldest is of another year"
    assert level(0.05, 2, 0.025, 0.02, [*spent, *spent], NOW) == LEAST


@pytest.mark.parametrize(
    ("cycles", "promoted"), [(52, 0), (52, 25), (52, 52), (52, 80), (12, 6), (12, 12), (4, 2), (4, 4)]
)
def test_the_levels_of_a_year_of_equal_candidates_sum_to_the_years_whatever_was_promoted_before(
    cycles: int, promoted: int
) -> None:
    draws: list[Draw] = []
    returned = 0.0
    for number in range(promoted + 2 * cycles):
        at = NOW + timedelta(days=365 / cycles * number)
        drawn = next_draw(0.05, cycles, draws, at)
        alpha = level(0.05, cycles, drawn, returned, draws, at)
        is_equal = number >= promoted
        draws.append(Draw(at, drawn, alpha if is_equal else 0.0))
        returned = 0.0 if is_equal else alpha
    equal = draws[promoted:]
    for first in equal:
        year = [draw.spent for draw in equal if timedelta(0) <= draw.at - first.at < timedelta(days=365)]
        assert sum(year) <= 0.05 + LEAST * len(year)
    assert min(draw.spent for draw in equal) >= 0.49 * 0.05 / cycles, "none is left with nothing"
