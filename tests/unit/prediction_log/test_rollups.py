"""Hours are counted from the lake, and published again whenever a row of them is appended or deleted."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.lake import PREDICTIONS, REQUESTS
from schemas.predictions import LatencySketch, PredictionsRolledUp, sketch_quantile
from services.prediction_log.erasure.erase import SubjectErasure, erase_subjects
from services.prediction_log.maintenance.compaction import MaintenancePolicy
from services.prediction_log.maintenance.maintenance import Maintenance
from services.prediction_log.rollups.dirty_hours import TaskHour
from services.prediction_log.rollups.hourly import MAX_ANSWER, MAX_ANSWERS, RollUps
from services.prediction_log.storage import DeltaLake
from services.prediction_log.tables import create_table
from tests.unit.prediction_log.deliveries import delivery
from tests.unit.prediction_log.deliveries import prediction as logged
from tests.unit.prediction_log.lake_rows import NOON, TASK, opened, prediction, request, write

HOUR = timedelta(hours=1)
LATER = NOON + timedelta(days=1)


def roll_ups(lake: Path) -> RollUps:
    return RollUps(str(lake))


def counted(lake: Path, start: datetime = NOON) -> list[PredictionsRolledUp]:
    return roll_ups(lake).count(TaskHour(TASK, start), LATER)


def publish_pending(counter: RollUps) -> list[datetime]:
    """Return the pending hours and record all of them as published."""
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
    assert [(label.answer, label.count) for label in base.answers] == [("delivery", 4)]
    assert base.confidence_histogram == (0,) * 9 + (4,)
    assert base.latency_ms_p50 == pytest.approx(12.5, rel=0.02)
    assert canary.confidence_histogram[9] == 1
    assert (canary.latency.zeros, canary.latency_ms_p95) == (1, 0.0)


def test_answers_are_the_most_frequent_with_their_counts(tmp_path: Path) -> None:
    answers = [f"answer {n}" for n in range(MAX_ANSWERS + 50) for _ in range(n + 1)]
    write(tmp_path, PREDICTIONS, [prediction(f"p{n}", answer=answer) for n, answer in enumerate(answers)])
    (event,) = counted(tmp_path)
    assert [(label.answer, label.count) for label in event.answers] == Counter(answers).most_common(MAX_ANSWERS)
    assert event.predictions == len(answers)


def test_a_long_answer_is_counted_by_its_beginning_so_that_the_event_stays_small(tmp_path: Path) -> None:
    long = ["é" * MAX_ANSWER, "é" * (MAX_ANSWER + 1), "é" * 1_000_000, "short"]
    write(tmp_path, PREDICTIONS, [prediction(f"p{n}", answer=answer) for n, answer in enumerate(long)])
    (event,) = counted(tmp_path)
    assert {label.answer: label.count for label in event.answers} == {
        "é" * MAX_ANSWER: 1, "é" * (MAX_ANSWER - 1) + "…": 2, "short": 1,
    }  # fmt: skip
    assert len(event.model_dump_json()) < 3_000


def test_each_answer_of_a_request_is_a_prediction(tmp_path: Path) -> None:
    events = [logged("p", answers=3), logged("q")]
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [delivery(event, number) for number, event in enumerate(events)])
    (event,) = counted(tmp_path)
    assert (event.predictions, event.answers[0].count, sum(event.confidence_histogram)) == (4, 4, 4)


def test_confidence_is_counted_in_tenths_and_missing_confidence_is_not_counted(tmp_path: Path) -> None:
    values = [0.0, 0.05, 0.1, 0.55, 0.999, 1.0, None]
    write(tmp_path, PREDICTIONS, [prediction(f"p{n}", confidence=value) for n, value in enumerate(values)])
    (event,) = counted(tmp_path)
    expected, _ = np.histogram([value for value in values if value is not None], bins=10, range=(0.0, 1.0))
    assert event.confidence_histogram == tuple(expected)


def test_requests_and_errors_are_counted_per_group_also_without_predictions(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p")])
    failed = [request(f"r{n}", status=status) for n, status in enumerate((200, 404, 500, 503))]
    write(tmp_path, REQUESTS, [*failed, request("c", variant="canary", adapter="a-1", status=502)])
    events = {e.variant.value: e for e in counted(tmp_path)}
    assert (events["base"].predictions, events["base"].requests, events["base"].errors) == (1, 4, 2)
    assert (events["canary"].predictions, events["canary"].requests, events["canary"].errors) == (0, 1, 1)


def test_the_same_counts_are_the_same_event_and_other_counts_another(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction(f"p{n}", answer=f"answer {n % 3}") for n in range(20)])
    (first,), (second,) = counted(tmp_path), counted(tmp_path)
    assert first.event_id == second.event_id
    opened(tmp_path, PREDICTIONS).optimize.compact()
    write(tmp_path, REQUESTS, [request("r")])
    (more,) = counted(tmp_path)
    assert more.event_id != first.event_id


def test_a_late_row_publishes_only_its_own_hour_again(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p0"), prediction("p1", NOON + HOUR)])
    counter = roll_ups(tmp_path)
    assert publish_pending(counter) == [NOON, NOON + HOUR]
    assert publish_pending(counter) == []
    write(tmp_path, PREDICTIONS, [prediction("p2", NOON + 3 * HOUR), prediction("late", NOON - timedelta(days=40))])
    assert publish_pending(counter) == [NOON - timedelta(days=40), NOON + 3 * HOUR]
    (event,) = counted(tmp_path, NOON - timedelta(days=40))
    assert event.predictions == 1


def test_an_hour_at_either_end_of_time_does_not_stop_the_others(tmp_path: Path) -> None:
    ends = [datetime(1, 1, 1, 0, 30, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)]
    write(tmp_path, PREDICTIONS, [prediction(str(number), at) for number, at in enumerate([*ends, NOON])])
    roll_ups = RollUps(str(tmp_path))
    counted = {hour.start: roll_ups.count(hour, NOON)[0].predictions for hour in roll_ups.pending()}
    assert counted == {at.replace(minute=0, second=0, microsecond=0): 1 for at in [*ends, NOON]}


def test_an_hour_that_was_not_published_stays_pending(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p")])
    counter = roll_ups(tmp_path)
    assert counter.pending() == counter.pending() == [TaskHour(TASK, NOON)]


def test_an_erasure_publishes_only_its_hours_again_with_lower_counts(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p0"), prediction("p1", user_hash="ann"), prediction("p2", NOON + HOUR)])
    counter = roll_ups(tmp_path)
    publish_pending(counter)
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    assert publish_pending(counter) == [NOON]
    assert counted(tmp_path)[0].predictions == 1


def test_a_group_without_rows_left_is_published_with_count_0_and_no_answers(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p0"), prediction("hers", user_hash="ann", adapter="a-1", answer="mine")])
    write(tmp_path, REQUESTS, [request("hers", user_hash="ann", variant="canary")])
    counter = roll_ups(tmp_path)
    publish_pending(counter)
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    (hour,) = counter.pending()
    events = {(e.variant.value, e.adapter): e for e in counter.count(hour, LATER)}
    assert {group: e.predictions for group, e in events.items()} == {
        ("base", None): 1, ("base", "a-1"): 0, ("canary", None): 0,
    }  # fmt: skip
    assert (events[("base", "a-1")].answers, events[("canary", None)].requests) == ((), 0)


def test_rows_of_erased_people_that_the_maintenance_deletes_publish_their_hour_again(tmp_path: Path) -> None:
    counter = roll_ups(tmp_path)
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON + HOUR)])
    write(tmp_path, PREDICTIONS, [prediction("p0"), prediction("late", NOON + HOUR, user_hash="ann")])
    publish_pending(counter)
    policy = MaintenancePolicy(HOUR, small_files=9, target_bytes=1024, grace_hours=0, orphan_hours=24)
    Maintenance(str(tmp_path), policy).run({}, LATER)
    assert publish_pending(counter) == [NOON + HOUR]


def test_a_compaction_publishes_no_hour_again_and_an_append_beside_it_its_own(tmp_path: Path) -> None:
    for hour in range(5):
        write(tmp_path, PREDICTIONS, [prediction(f"p{hour}", NOON + hour * HOUR)])
    counter = roll_ups(tmp_path)
    publish_pending(counter)
    write(tmp_path, PREDICTIONS, [prediction("beside", NOON + 2 * HOUR)])
    opened(tmp_path, PREDICTIONS).optimize.compact()
    assert publish_pending(counter) == [NOON + 2 * HOUR]


def test_a_process_resumes_from_the_stored_watermark_although_files_were_compacted(tmp_path: Path) -> None:
    for hour in range(5):
        write(tmp_path, PREDICTIONS, [prediction(f"p{hour}", NOON + hour * HOUR)])
    first = roll_ups(tmp_path)
    publish_pending(first)
    first.pending()  # The next round stores the watermark, now that all hours are published.
    opened(tmp_path, PREDICTIONS).optimize.compact()
    write(tmp_path, PREDICTIONS, [prediction("late", NOON - timedelta(days=9))])
    assert publish_pending(roll_ups(tmp_path)) == [NOON - timedelta(days=9)]


def test_hours_and_deletions_that_a_killed_process_did_not_publish_are_pending_in_the_next(
    tmp_path: Path,
) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p0"), prediction("p1", NOON + HOUR, user_hash="ann")])
    killed = roll_ups(tmp_path)
    publish_pending(killed)
    killed.pending()
    write(tmp_path, PREDICTIONS, [prediction("p2", NOON + 2 * HOUR), prediction("p3", NOON + 3 * HOUR)])
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON + HOUR)])
    killed.published(killed.pending()[0])
    killed.pending()
    assert publish_pending(roll_ups(tmp_path)) == [NOON + HOUR, NOON + 2 * HOUR, NOON + 3 * HOUR]


def test_a_log_that_was_cleaned_up_unread_publishes_the_hours_written_since(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("old", NOON - timedelta(days=2))])
    counter = roll_ups(tmp_path)
    publish_pending(counter)
    age_commits(tmp_path, PREDICTIONS, hours=5)
    write(tmp_path, PREDICTIONS, [prediction("p1", NOON + HOUR), prediction("p2", NOON + 3 * HOUR)])
    write(tmp_path, PREDICTIONS, [prediction("p3", NOON + 9 * HOUR)])
    opened(tmp_path, PREDICTIONS).create_checkpoint()
    (tmp_path / PREDICTIONS / "_delta_log" / f"{2:020d}.json").unlink()
    assert publish_pending(counter) == [NOON + HOUR, NOON + 2 * HOUR, NOON + 3 * HOUR, NOON + 9 * HOUR]


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '"no"'])
def test_an_invalid_watermark_is_ignored(tmp_path: Path, text: str) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p")])
    (tmp_path / PREDICTIONS / "_rolled_up.json").write_text(text)
    assert publish_pending(roll_ups(tmp_path)) == [NOON]


def test_no_vacuum_deletes_the_watermark(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p")])
    counter = roll_ups(tmp_path)
    publish_pending(counter)
    counter.pending()
    watermark = tmp_path / PREDICTIONS / "_rolled_up.json"
    os.utime(watermark, (1.0, 1.0))
    policy = MaintenancePolicy(HOUR, small_files=2, target_bytes=1024, grace_hours=0, orphan_hours=24)
    Maintenance(str(tmp_path), policy).run({}, LATER)
    assert watermark.exists()


def test_another_table_in_the_same_folder_is_read_from_its_start(tmp_path: Path) -> None:
    counter = roll_ups(tmp_path)
    write(tmp_path, PREDICTIONS, [prediction("p0")])
    publish_pending(counter)
    shutil.rmtree(tmp_path / PREDICTIONS)
    write(tmp_path, PREDICTIONS, [prediction("p0", NOON + HOUR)])
    assert publish_pending(counter) == [NOON + HOUR]


def test_a_file_without_statistics_publishes_all_hours_of_its_day(tmp_path: Path) -> None:
    create_table(str(tmp_path), PREDICTIONS).alter.set_table_properties({"delta.dataSkippingStatsColumns": "answer"})
    counter = roll_ups(tmp_path)
    counter.pending()
    write(tmp_path, PREDICTIONS, [prediction("p0")])
    midnight = NOON.replace(hour=0)
    assert publish_pending(counter) == [midnight + hour * HOUR for hour in range(24)]
    assert len(publish_pending(roll_ups(tmp_path))) == 24


def age_commits(lake: Path, table: str, hours: int) -> None:
    """Make the table's commits look older, by each file's time in the log."""
    for path in sorted((lake / table / "_delta_log").glob("*.json")):
        actions = [json.loads(line) for line in path.read_text().splitlines()]
        for action in actions:
            if "add" in action:
                action["add"]["modificationTime"] -= hours * 3_600_000
        path.write_text("\n".join(json.dumps(action) for action in actions))


@settings(max_examples=5)
@given(st.lists(st.tuples(st.integers(0, 71), st.sampled_from(["a", "b"])), min_size=1, max_size=16), st.data())
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


def merged_sketch(first: LatencySketch, second: LatencySketch) -> LatencySketch:
    """The sketch of both, as a reader of the roll-ups adds hours up to a day."""
    counts: Counter[int] = Counter()
    for sketch in (first, second):
        counts.update(dict(zip(sketch.indexes, sketch.counts, strict=True)))
    indexes = tuple(sorted(counts))
    return LatencySketch(
        zeros=first.zeros + second.zeros, indexes=indexes, counts=tuple(counts[index] for index in indexes)
    )


@settings(max_examples=6)
@given(latencies, latencies, st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_a_quantile_of_merged_sketches_is_within_two_percent(first: list[float], second: list[float], q: float) -> None:
    with tempfile.TemporaryDirectory() as first_folder, tempfile.TemporaryDirectory() as second_folder:
        merged = merged_sketch(sketch_of(first, Path(first_folder)), sketch_of(second, Path(second_folder)))
    exact = float(np.quantile([*first, *second], q, method="lower"))
    error = (merged.gamma - 1) / (merged.gamma + 1)
    assert sketch_quantile(merged, q) == pytest.approx(exact, rel=error * 1.001, abs=1e-9)
    assert merged.zeros + sum(merged.counts) == len(first) + len(second)


def test_a_sketch_accepts_any_latency_and_the_quantile_of_none_is_0(tmp_path: Path) -> None:
    sketch = sketch_of([5e-324, 1e-300, 1.0, 1e300], tmp_path)
    assert (sum(sketch.counts), sketch.zeros) == (4, 0)
    assert sketch_quantile(LatencySketch(), 0.5) == 0.0
