"""When a cycle is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from schemas.adapters import AdapterEvaluated
from services.scheduler.domain import (
    ScheduledRun,
    check_schedule,
    cycle_end,
    cycle_name,
    is_later_step,
    valid_cron,
)

MONDAY_THREE = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
WEEKLY = "0 3 * * 1"


def test_a_new_task_waits_for_its_next_run() -> None:
    now = MONDAY_THREE + timedelta(hours=1)
    assert check_schedule(WEEKLY, None, now) == (False, ScheduledRun(WEEKLY, now))


def test_a_cycle_is_due_at_the_second_of_its_run() -> None:
    before = ScheduledRun(WEEKLY, MONDAY_THREE - timedelta(days=2))
    assert check_schedule(WEEKLY, before, MONDAY_THREE - timedelta(seconds=1)) == (False, before)
    assert check_schedule(WEEKLY, before, MONDAY_THREE) == (True, ScheduledRun(WEEKLY, MONDAY_THREE))


def test_a_run_that_was_started_is_not_started_again() -> None:
    started = ScheduledRun(WEEKLY, MONDAY_THREE)
    assert check_schedule(WEEKLY, started, MONDAY_THREE + timedelta(seconds=30)) == (False, started)


def test_many_runs_missed_while_down_start_one_cycle() -> None:
    _, last = check_schedule(
        "0 * * * *", ScheduledRun("0 * * * *", MONDAY_THREE), MONDAY_THREE + timedelta(hours=9, minutes=20)
    )
    assert last.considered_at == MONDAY_THREE + timedelta(hours=9)
    assert check_schedule("0 * * * *", last, MONDAY_THREE + timedelta(hours=9, minutes=21)) == (False, last)


def test_a_changed_cron_does_not_start_a_past_run() -> None:
    now = MONDAY_THREE + timedelta(days=2, minutes=20)
    assert check_schedule("0 * * * *", ScheduledRun(WEEKLY, MONDAY_THREE), now) == (
        False,
        ScheduledRun("0 * * * *", now),
    )


def test_a_run_that_was_decided_on_by_a_clock_that_was_ahead_holds_up_no_run_after_the_next() -> None:
    """The clock was a year ahead for a moment: no cycle would start until then."""
    last, now = ScheduledRun(WEEKLY, MONDAY_THREE + timedelta(days=364)), MONDAY_THREE + timedelta(days=2)
    due, run = check_schedule(WEEKLY, last, now)
    assert (due, run) == (False, ScheduledRun(WEEKLY, now))
    assert check_schedule(WEEKLY, run, MONDAY_THREE + timedelta(days=7, seconds=1))[0]


def test_a_clock_that_is_set_back_behind_a_run_does_not_start_it_twice() -> None:
    due, run = check_schedule(WEEKLY, ScheduledRun(WEEKLY, MONDAY_THREE), MONDAY_THREE - timedelta(seconds=2))
    assert (due, run) == (False, ScheduledRun(WEEKLY, MONDAY_THREE))
    assert not check_schedule(WEEKLY, run, MONDAY_THREE + timedelta(seconds=1))[0]


@pytest.mark.parametrize("cron", ["0 0 31 4 *", "0 3 30 2 *", "0 0 31 2,4,6,9,11 *"])
def test_a_cron_of_a_day_that_no_calendar_has_is_refused(cron: str) -> None:
    assert not valid_cron(cron)


@pytest.mark.parametrize("cron", ["R R * * *", "r(0-5) 3 * * 1", "R/5 * * * *", "0 3 * * R"])
def test_a_cron_that_is_another_time_whenever_it_is_read_is_refused(cron: str) -> None:
    assert not valid_cron(cron)


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 3 * MAR FRI", "*/5 * * * *", "0 3 * * 1#5", "0 0 L * *"])
def test_a_cron_that_comes_round_however_rarely_is_taken(cron: str) -> None:
    assert valid_cron(cron)


@pytest.mark.parametrize("cron", ["", "@weekly", "* * * *", "0 3 * * 1 0", "61 * * * *", "0 3 * * 9"])
def test_an_invalid_cron_is_refused(cron: str) -> None:
    assert not valid_cron(cron)


def test_a_cycle_is_named_by_task_and_utc() -> None:
    assert cycle_name("desk", MONDAY_THREE) == "desk-20261123-030000"


def test_steps_only_move_forward() -> None:
    assert is_later_step("training", "dataset")
    assert not is_later_step("dataset", "training")
    assert not is_later_step("training", "training")


@pytest.mark.parametrize("verdict", ["passed", "inconclusive"])
def test_a_model_that_no_gate_stops_ends_its_cycle_and_the_reason_says_how_to_ask_for_it(verdict: str) -> None:
    """An adapter's cycle goes on to its rollout; no rollout of a model would ever end it."""
    example = Path("schemas/examples/adapters.evaluated.v1/passed.json")
    adapter = AdapterEvaluated.model_validate_json(example.read_bytes()).model_copy(update={"verdict": verdict})
    assert cycle_end(adapter) is None
    end = cycle_end(adapter.model_copy(update={"kind": "model", "adapter": "desk-4f2a90c1"}))
    assert end is not None and (end.outcome, end.adapter) == ("inconclusive", "desk-4f2a90c1")
    assert "`model: desk-4f2a90c1`" in end.reason and "--pass-through" in end.reason
    failed = cycle_end(adapter.model_copy(update={"kind": "model", "verdict": "failed"}))
    assert failed is not None and failed.outcome == "rejected"
