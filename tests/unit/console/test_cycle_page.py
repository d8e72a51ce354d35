"""A cycle's events are rendered as a page."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.catalog import topic_named
from services.console.history import stored_event
from services.console.pages.cycle import outcome_tag, sections, timeline
from shared.report.html import fragment
from shared.report.written import duration

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
EXAMPLES = Path(__file__).parents[3] / "schemas" / "examples"
ORDER = ("cycles.started", "failures.clustered", "datasets.built", "adapters.trained", "adapters.evaluated")


def stored(topic: str, minute: int, example: str | None = None, **changes: Any) -> dict[str, Any]:
    """A step's result as the console stores it: pages are made of that alone."""
    folder = EXAMPLES / f"{topic}.v1"
    path = folder / example if example else sorted(folder.iterdir())[0]
    event = topic_named(f"{topic}.v1").event.model_validate({**json.loads(path.read_text()), **changes})
    return {
        "topic": f"{topic}.v1",
        "occurred_at": NOON + timedelta(minutes=minute),
        "event": stored_event(event),
    }


def cards_of(records: list[dict[str, Any]]) -> dict[str, str]:
    return {title: str(fragment(blocks)) for title, blocks in sections(records)}


def states(steps: list[dict[str, Any]]) -> list[str]:
    return [state.state for state in timeline(steps, NOON + timedelta(hours=1))]


@pytest.mark.parametrize("done", range(5))
def test_the_first_step_without_a_result_is_running(done: int) -> None:
    steps = [stored(topic, minute) for minute, topic in enumerate(ORDER[: done + 1])]
    assert states(steps) == ["done"] * done + ["go"] + [""] * (4 - done)


def test_a_promoted_cycle_is_done() -> None:
    steps = [stored(topic, minute) for minute, topic in enumerate(ORDER)]
    steps += [
        stored("rollouts.changed", 7, "promoted.json"),
        stored("cycles.finished", 8, outcome="promoted"),
    ]
    assert states(steps) == ["done"] * 5


def test_a_cycle_whose_candidate_was_rejected_is_bad_at_the_rollout() -> None:
    steps = [stored(topic, minute) for minute, topic in enumerate(ORDER)]
    steps += [
        stored("rollouts.changed", 7, stage="rejected"),
        stored("cycles.finished", 8, outcome="rejected"),
    ]
    assert states(steps) == ["done"] * 4 + ["bad"]


def test_a_failed_step_is_bad_and_nothing_runs_after_it() -> None:
    steps = [stored("cycles.started", 0), stored("steps.failed", 1, service="trainer", step="dataset")]
    steps.insert(1, stored("failures.clustered", 0))
    assert states(steps) == ["done", "bad", "", "", ""]


def test_a_late_step_is_still_running() -> None:
    steps = [stored("cycles.started", 0), stored("steps.failed", 30, service="scheduler", step="failures")]
    (first, *_) = timeline(steps, NOON + timedelta(hours=1))
    assert (first.state, first.note) == ("go", "late, 1 h 0 min")


@pytest.mark.parametrize(("minute", "note"), [(29, "late, 1 h 0 min"), (31, "1 h 0 min")])
def test_a_step_that_progressed_after_it_was_reported_late_is_late_no_more(minute: int, note: str) -> None:
    steps = [stored("cycles.started", 0), stored("steps.failed", 30, service="scheduler", step="failures")]
    progress = {"step": "failures", "occurred_at": (NOON + timedelta(minutes=minute)).isoformat()}
    (first, *_) = timeline(steps, NOON + timedelta(hours=1), progress)
    assert first.note == note


def test_a_rollout_that_moved_on_after_it_was_reported_late_is_late_no_more() -> None:
    steps = [stored(topic, minute) for minute, topic in enumerate(ORDER)]
    steps.append(stored("rollouts.changed", 5, stage="shadow"))
    steps.append(stored("steps.failed", 30, service="scheduler", step="rollout"))
    now = NOON + timedelta(hours=1)
    assert timeline(steps, now)[-1].note.startswith("late, ")
    steps.append(stored("rollouts.changed", 40, stage="canary"))
    assert not timeline(steps, now)[-1].note.startswith("late, ")


def test_a_cycle_with_too_little_new_is_skipped_in_words_and_is_no_problem() -> None:
    skipped = stored("steps.failed", 1, "too-little-new.json")
    steps = [stored("cycles.started", 0), stored("failures.clustered", 0), skipped]
    steps.append(stored("cycles.finished", 2, outcome="skipped", adapter=None, reason=skipped["event"]["reason"]))
    dataset = timeline(steps, NOON)[1]
    assert (states(steps), dataset.note) == (["done", "", "", "", ""], "skipped")
    cards = cards_of(steps)
    assert "Problems" not in cards
    assert "4 examples are new or changed" in cards["Nothing to learn from yet"]
    assert (outcome_tag("skipped").tone, outcome_tag("failed").tone) == ("", "bad")


def test_a_dataset_and_a_stopped_build_link_to_their_inspection() -> None:
    built = stored("datasets.built", 1, gates=[
        {"name": "agreement", "passed": True, "measured": None, "required": ">= 0.9", "detail": "31 overlaps"}
    ])  # fmt: skip
    stopped = stored("steps.failed", 1, "too-few.json", cycle_id="desk-2")
    cards = cards_of([built, stopped])
    assert f"/cycles/{built['event']['cycle_id']}/report" in cards["Dataset"]
    assert "/cycles/desk-2/report" in cards["Problems"]
    assert ">unknown<" in cards["Dataset"] and ">passed<" not in cards["Dataset"]
    late = {**stopped, "event": {**stopped["event"], "report": None}}
    assert "href" not in cards_of([late])["Problems"]


def test_an_evaluation_says_the_verdict_first_and_links_to_its_page() -> None:
    found = stored("adapters.evaluated", 0, "passed.json", headline="Passed <every> gate.")
    shown = cards_of([found])["Evaluation"]
    assert shown.strip().startswith('<p class="verdict good">Passed &lt;every&gt; gate.</p>')
    assert f"/cycles/{found['event']['cycle_id']}/evaluation" in shown
    for missing in ({"report": None}, {"cycle_id": None}):
        older = stored("adapters.evaluated", 0, "passed.json", headline="", **missing)
        assert "/evaluation" not in cards_of([older])["Evaluation"]


def test_every_example_message_has_a_card() -> None:
    topics = ("cycles.finished", "steps.failed", *ORDER[1:], "rollouts.changed")
    cards = dict(sections([stored(topic, 0) for topic in topics]))
    assert list(cards) == [
        "Outcome", "Problems", "Failure modes", "Dataset", "Training", "Evaluation", "Rollout",
    ]  # fmt: skip


def test_text_from_events_is_escaped() -> None:
    poison = "<img src=x onerror=alert(1)>"
    modes = [
        {"mode_id": "m", "name": poison, "words": [poison], "exemplars": [poison], "size": 1, "share": 1.0,
         "mean_confidence": None, "is_new": True}
    ]  # fmt: skip
    cards = cards_of([stored("failures.clustered", 0, modes=modes), stored("steps.failed", 0, reason=poison)])
    assert "&lt;img" in cards["Failure modes"] and poison not in "".join(cards.values())


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (-2, "0 s"), (61, "1 min 1 s"), (7_260, "2 h 1 min")])
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
