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
        draws.append(Draw(at, next_draw(0.05, cycles, draws, at)))
        at += timedelta(days=days)
    return draws


def test_a_tasks_first_candidate_draws_a_cycles_share_and_the_next_what_has_accrued() -> None:
    assert next_draw(0.05, 52, [], NOW) == pytest.approx(WEEKLY)
    first = Draw(NOW, WEEKLY)
    for days, amount in ((1, 0.05 / 365), (3.5, 0.05 * 3.5 / 365), (7, 0.05 * 7 / 365), (8, WEEKLY), (200, WEEKLY)):
        assert next_draw(0.05, 52, [first], NOW + timedelta(days=days)) == pytest.approx(amount), days


def test_nothing_has_accrued_in_the_same_moment_or_by_a_clock_that_went_back() -> None:
    assert next_draw(0.05, 52, [Draw(NOW, WEEKLY)], NOW) == LEAST
    assert next_draw(0.05, 52, [Draw(NOW, WEEKLY)], NOW - timedelta(days=1)) == LEAST


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
    assert level(0.05, WEEKLY, 0.0) == pytest.approx(WEEKLY)
    assert level(0.05, WEEKLY, WEEKLY) == pytest.approx(2 * WEEKLY)
    assert level(0.05, 0.03, 0.04) == 0.05
