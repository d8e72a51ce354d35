"""When a cycle is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from services.scheduler.domain import Turn, cycle_name, due, further, valid_cron

MONDAY_THREE = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
WEEKLY = "0 3 * * 1"


def test_a_task_seen_for_the_first_time_waits_for_its_next_turn() -> None:
    now = MONDAY_THREE + timedelta(hours=1)
    assert due(WEEKLY, None, now) == (False, Turn(WEEKLY, now))


def test_a_turn_comes_at_its_second() -> None:
    before = Turn(WEEKLY, MONDAY_THREE - timedelta(days=2))
    assert due(WEEKLY, before, MONDAY_THREE - timedelta(seconds=1)) == (False, before)
    assert due(WEEKLY, before, MONDAY_THREE) == (True, Turn(WEEKLY, MONDAY_THREE))


def test_a_turn_that_was_taken_is_not_taken_again() -> None:
    taken = Turn(WEEKLY, MONDAY_THREE)
    assert due(WEEKLY, taken, MONDAY_THREE + timedelta(seconds=30)) == (False, taken)


def test_many_turns_missed_while_down_are_started_once() -> None:
    _, last = due("0 * * * *", Turn("0 * * * *", MONDAY_THREE), MONDAY_THREE + timedelta(hours=9, minutes=20))
    assert last.considered_at == MONDAY_THREE + timedelta(hours=9)
    assert due("0 * * * *", last, MONDAY_THREE + timedelta(hours=9, minutes=21)) == (False, last)


def test_a_changed_cron_does_not_start_a_turn_of_the_past() -> None:
    now = MONDAY_THREE + timedelta(days=2, minutes=20)
    assert due("0 * * * *", Turn(WEEKLY, MONDAY_THREE), now) == (False, Turn("0 * * * *", now))


@pytest.mark.parametrize("cron", ["", "@weekly", "* * * *", "0 3 * * 1 0", "61 * * * *", "0 3 * * 9"])
def test_a_cron_that_is_none_is_refused(cron: str) -> None:
    assert not valid_cron(cron)


def test_a_cycle_is_named_by_task_and_utc() -> None:
    assert cycle_name("desk", MONDAY_THREE) == "desk-20261123-030000"


def test_steps_only_move_forward() -> None:
    assert further("training", "dataset")
    assert not further("dataset", "training")
    assert not further("training", "training")
