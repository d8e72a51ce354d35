"""Hours are counted from the lake's files, each restated whenever a row of it comes or goes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.lake import PREDICTIONS, REQUESTS
from schemas.predictions import LatencySketch, PredictionsRolledUp, merged_sketch, sketch_quantile
from services.prediction_log.erasure.erase import ErasureRequest, erase_subjects
from services.prediction_log.maintenance.compaction import MaintenancePolicy
from services.prediction_log.maintenance.maintenance import Maintenance
from services.prediction_log.rollups.dirty_hours import TaskHour
from services.prediction_log.rollups.hourly import MAX_ANSWERS, RollUps
from services.prediction_log.tables import create_table
from tests.unit.prediction_log.lake_rows import NOON, TASK, opened, prediction, request, write

HOUR = timedelta(hours=1)
LATER = NOON + timedelta(days=1)


def roll_ups(lake: Path) -> RollUps:
    return RollUps(str(lake))


def counted(lake: Path, start: datetime = NOON) -> list[PredictionsRolledUp]:
    return roll_ups(lake).count(TaskHour(TASK, start), LATER)


def restated(counter: RollUps) -> list[datetime]:
    """The hours pending; all of them are then done."""
    hours = counter.pending()
    for hour in hours:
        counter.published(hour)
    return [hour.start for hour in hours]


def test_an_hour_is_counted_per_revision_variant_and_adapter(tmp_path: Path) -> None:
    rows = [prediction(f"p{n}") for n in range(4)]
    rows += [prediction("other-revision", task_revision="r2"), prediction("next-hour", NOON + HOUR)]
    rows += [prediction("canary", variant="canary", adapter="a-1", answer="refund", confidence=1.0, latency_ms=0.0)]
    write(tmp_path, PREDICTIONS, rows)
    events = {(e.task_revision, e.variant.value, e.adapter): e for e in counted(tmp_path)}
    assert set(events) == {("r1", "base", None), ("r2", "base", None), ("r1", "canary", "a-1")}
    base, canary = events[("r1", "base", None)], events[("r1", "canary", "a-1")]
    assert (base.predictions, base.hour, base.task) == (4, NOON, TASK)
    assert [(one.answer, one.count) for one in base.answers] == [("delivery", 4)]
    assert base.confidence_histogram == (0,) * 9 + (4,)
    assert base.latency_ms_p50 == pytest.approx(12.5, rel=0.02)
    assert canary.confidence_histogram[9] == 1
    assert (canary.latency.zeros, canary.latency_ms_p95) == (1, 0.0)


def test_answers_are_the_most_frequent_with_their_counts(tmp_path: Path) -> None:
    answers = [f"answer {n}" for n in range(MAX_ANSWERS + 50) for _ in range(n + 1)]
    write(tmp_path, PREDICTIONS, [prediction(f"p{n}", answer=answer) for n, answer in enumerate(answers)])
    (event,) = counted(tmp_path)
    assert [(one.answer, one.count) for one in event.answers] == Counter(answers).most_common(MAX_ANSWERS)
    assert event.predictions == len(answers)


def test_confidence_is_counted_in_tenths_and_unknown_confidence_not_at_all(tmp_path: Path) -> None:
    values = [0.0, 0.05, 0.1, 0.55, 0.999, 1.0, None]
    write(tmp_path, PREDICTIONS, [prediction(f"p{n}", confidence=value) for n, value in enumerate(values)])
    (event,) = counted(tmp_path)
    expected, _ = np.histogram([value for value in values if value is not None], bins=10, range=(0.0, 1.0))
    assert event.confidence_histogram == tuple(expected)


def test_requests_and_errors_are_of_the_same_group_and_an_hour_of_errors_alone_is_an_hour(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p")])
    failed = [request(f"r{n}", status=status) for n, status in enumerate((200, 404, 500, 503))]
    write(tmp_path, REQUESTS, [*failed, request("c", variant="canary", adapter="a-1", status=502)])
    events = {e.variant.value: e for e in counted(tmp_path)}
    assert (events["base"].predictions, events["base"].requests, events["base"].errors) == (1, 4, 2)
    assert (events["canary"].predictions, events["canary"].requests, events["canary"].errors) == (0, 1, 1)


def test_the_same_counts_are_the_same_event_and_one_row_more_is_another(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction(f"p{n}", answer=f"answer {n % 3}") for n in range(20)])
    (first,), (again,) = counted(tmp_path), counted(tmp_path)
    assert first.event_id == again.event_id
    opened(tmp_path, PREDICTIONS).optimize.compact()
    write(tmp_path, REQUESTS, [request("r")])
    (more,) = counted(tmp_path)
    assert more.event_id != first.event_id


def test_a_late_row_restates_its_own_hour_and_no_other(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p0"), prediction("p1", NOON + HOUR)])
    counter = roll_ups(tmp_path)
    assert restated(counter) == [NOON, NOON + HOUR]
    assert restated(counter) == []
    write(tmp_path, PREDICTIONS, [prediction("p2", NOON + 3 * HOUR), prediction("late", NOON - timedelta(days=40))])
    assert restated(counter) == [NOON - timedelta(days=40), NOON + 3 * HOUR]
    (event,) = counted(tmp_path, NOON - timedelta(days=40))
    assert event.predictions == 1


def test_an_hour_that_was_not_published_stays_to_be_done(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p")])
    counter = roll_ups(tmp_path)
    assert counter.pending() == counter.pending() == [TaskHour(TASK, NOON)]


def test_an_hour_is_restated_with_less_after_somebody_is_forgotten_and_no_other_hour_is(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p0"), prediction("p1", user_hash="ann"), prediction("p2", NOON + HOUR)])
    counter = roll_ups(tmp_path)
    restated(counter)
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    assert restated(counter) == [NOON]
    assert counted(tmp_path)[0].predictions == 1


def test_a_group_that_has_no_row_left_is_restated_as_none_and_names_no_answer(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p0"), prediction("hers", user_hash="ann", adapter="a-1", answer="mine")])
    write(tmp_path, REQUESTS, [request("hers", user_hash="ann", variant="canary")])
    counter = roll_ups(tmp_path)
    restated(counter)
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    (hour,) = counter.pending()
    events = {(e.variant.value, e.adapter): e for e in counter.count(hour, LATER)}
    assert {group: e.predictions for group, e in events.items()} == {
        ("base", None): 1, ("base", "a-1"): 0, ("canary", None): 0,
    }  # fmt: skip
    assert (events[("base", "a-1")].answers, events[("canary", None)].requests) == ((), 0)


def test_rows_of_the_forgotten_that_the_maintenance_finds_restate_their_hour(tmp_path: Path) -> None:
    counter = roll_ups(tmp_path)
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON + HOUR)])
    write(tmp_path, PREDICTIONS, [prediction("p0"), prediction("late", NOON + HOUR, user_hash="ann")])
    restated(counter)
    policy = MaintenancePolicy(HOUR, small_files=9, target_bytes=1024, grace_hours=0, orphan_hours=24)
    Maintenance(str(tmp_path), policy).run({}, LATER)
    assert restated(counter) == [NOON + HOUR]


def test_a_compaction_restates_nothing_and_what_is_appended_beside_it_its_own_hour(tmp_path: Path) -> None:
    for hour in range(5):
        write(tmp_path, PREDICTIONS, [prediction(f"p{hour}", NOON + hour * HOUR)])
    counter = roll_ups(tmp_path)
    restated(counter)
    write(tmp_path, PREDICTIONS, [prediction("beside", NOON + 2 * HOUR)])
    opened(tmp_path, PREDICTIONS).optimize.compact()
    assert restated(counter) == [NOON + 2 * HOUR]


def test_a_process_goes_on_where_the_last_one_had_published_whatever_was_compacted(tmp_path: Path) -> None:
    for hour in range(5):
        write(tmp_path, PREDICTIONS, [prediction(f"p{hour}", NOON + hour * HOUR)])
    first = roll_ups(tmp_path)
    restated(first)
    first.pending()  # Its next round notes that all of the last one was published.
    opened(tmp_path, PREDICTIONS).optimize.compact()
    write(tmp_path, PREDICTIONS, [prediction("late", NOON - timedelta(days=9))])
    assert restated(roll_ups(tmp_path)) == [NOON - timedelta(days=9)]


def test_what_a_killed_process_had_not_published_is_pending_in_the_next_deletions_too(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p0"), prediction("p1", NOON + HOUR, user_hash="ann")])
    killed = roll_ups(tmp_path)
    restated(killed)
    killed.pending()
    write(tmp_path, PREDICTIONS, [prediction("p2", NOON + 2 * HOUR), prediction("p3", NOON + 3 * HOUR)])
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON + HOUR)])
    killed.published(killed.pending()[0])
    killed.pending()
    assert restated(roll_ups(tmp_path)) == [NOON + HOUR, NOON + 2 * HOUR, NOON + 3 * HOUR]


def test_a_log_that_was_cleaned_up_meanwhile_restates_what_was_written_since(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("old", NOON - timedelta(days=2))])
    counter = roll_ups(tmp_path)
    restated(counter)
    age_commits(tmp_path, PREDICTIONS, hours=5)
    write(tmp_path, PREDICTIONS, [prediction("p1", NOON + HOUR), prediction("p2", NOON + 3 * HOUR)])
    write(tmp_path, PREDICTIONS, [prediction("p3", NOON + 9 * HOUR)])
    opened(tmp_path, PREDICTIONS).create_checkpoint()
    (tmp_path / PREDICTIONS / "_delta_log" / f"{2:020d}.json").unlink()
    assert restated(counter) == [NOON + HOUR, NOON + 2 * HOUR, NOON + 3 * HOUR, NOON + 9 * HOUR]


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '"no"'])
def test_a_note_of_the_progress_that_is_not_ours_is_none(tmp_path: Path, text: str) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p")])
    (tmp_path / PREDICTIONS / "_rolled_up.json").write_text(text)
    assert restated(roll_ups(tmp_path)) == [NOON]


def test_the_note_of_the_progress_outlives_every_vacuum(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p")])
    counter = roll_ups(tmp_path)
    restated(counter)
    counter.pending()
    note = tmp_path / PREDICTIONS / "_rolled_up.json"
    os.utime(note, (1.0, 1.0))
    policy = MaintenancePolicy(HOUR, small_files=2, target_bytes=1024, grace_hours=0, orphan_hours=24)
    Maintenance(str(tmp_path), policy).run({}, LATER)
    assert note.exists()


def test_another_table_at_the_same_place_is_read_from_its_start(tmp_path: Path) -> None:
    counter = roll_ups(tmp_path)
    write(tmp_path, PREDICTIONS, [prediction("p0")])
    restated(counter)
    shutil.rmtree(tmp_path / PREDICTIONS)
    write(tmp_path, PREDICTIONS, [prediction("p0", NOON + HOUR)])
    assert restated(counter) == [NOON + HOUR]


def test_a_file_without_statistics_may_have_rows_of_its_whole_day(tmp_path: Path) -> None:
    create_table(str(tmp_path), PREDICTIONS).alter.set_table_properties({"delta.dataSkippingStatsColumns": "answer"})
    counter = roll_ups(tmp_path)
    counter.pending()
    write(tmp_path, PREDICTIONS, [prediction("p0")])
    midnight = NOON.replace(hour=0)
    assert restated(counter) == [midnight + hour * HOUR for hour in range(24)]
    assert len(restated(roll_ups(tmp_path))) == 24


def age_commits(lake: Path, table: str, hours: int) -> None:
    """Make the table's commits so far look older: the log has each file's time."""
    for path in sorted((lake / table / "_delta_log").glob("*.json")):
        actions = [json.loads(line) for line in path.read_text().splitlines()]
        for action in actions:
            if "add" in action:
                action["add"]["modificationTime"] -= hours * 3_600_000
        path.write_text("\n".join(json.dumps(action) for action in actions))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 71), st.sampled_from(["a", "b"])), min_size=1, max_size=40), st.data())
def test_rows_in_any_order_and_any_batches_give_the_same_hours(
    rows: list[tuple[int, str]], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    with tempfile.TemporaryDirectory() as folder:
        lake, counter, last = Path(folder), roll_ups(Path(folder)), dict[tuple[datetime, str], int]()
        for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            batch = [
                prediction(f"{start}-{n}", NOON + h * HOUR, adapter=a) for n, (h, a) in enumerate(shuffled[start:end])
            ]
            if batch:
                write(lake, PREDICTIONS, batch)
            for hour in counter.pending():
                for event in counter.count(hour, LATER):
                    last[(event.hour, event.adapter or "")] = event.predictions
                counter.published(hour)
    assert last == Counter((NOON + h * HOUR, a) for h, a in rows)


latencies = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e7)), min_size=1, max_size=200)


def sketch_of(values: Sequence[float], folder: Path) -> LatencySketch:
    write(folder, PREDICTIONS, [prediction(f"p{n}", latency_ms=value) for n, value in enumerate(values)])
    (event,) = counted(folder)
    return event.latency


@settings(max_examples=40, deadline=None)
@given(latencies, latencies, st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_a_quantile_of_merged_sketches_is_within_two_percent(first: list[float], second: list[float], q: float) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        merged = merged_sketch([sketch_of(first, Path(one)), sketch_of(second, Path(two))])
    exact = float(np.quantile([*first, *second], q, method="lower"))
    error = (merged.gamma - 1) / (merged.gamma + 1)
    assert sketch_quantile(merged, q) == pytest.approx(exact, rel=error * 1.001, abs=1e-9)
    assert merged.zeros + sum(merged.counts) == len(first) + len(second)


def test_sketches_of_different_buckets_do_not_merge() -> None:
    with pytest.raises(ValueError, match="different gammas"):
        merged_sketch([LatencySketch(gamma=1.02), LatencySketch()])


def test_a_sketch_takes_any_latency_and_no_latencies_have_the_quantile_zero(tmp_path: Path) -> None:
    sketch = sketch_of([5e-324, 1e-300, 1.0, 1e300], tmp_path)
    assert (sum(sketch.counts), sketch.zeros) == (4, 0)
    assert sketch_quantile(LatencySketch(), 0.5) == 0.0
