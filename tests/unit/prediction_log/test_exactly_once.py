"""prediction_log stores each event once, whatever is delivered."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4

import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.lake import FEEDBACK, FORGOTTEN, PREDICTIONS, REQUESTS
from services.prediction_log.domain import new_deliveries
from services.prediction_log.erasure.erase import SubjectErasure, erase_subjects
from services.prediction_log.offsets.resume import resume_from
from services.prediction_log.storage import DeltaLake
from services.prediction_log.tables import SCHEMAS, create_table
from shared.errors import DependencyUnavailable, MustStop
from tests.unit.prediction_log.deliveries import (
    NOON,
    TASK,
    TOPICS,
    delivery,
    feedback,
    numbered,
    prediction,
    request,
    rows_hash,
    stored_ids,
)

TOPIC = TOPICS[PREDICTIONS]


def test_a_redelivered_prediction_is_kept_once(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    batch = [numbered(0, n) for n in range(3)]
    assert lake.append(PREDICTIONS, batch) == 3
    assert lake.append(PREDICTIONS, [*batch, numbered(0, 3)]) == 1
    assert stored_ids(tmp_path) == ["p-0-0", "p-0-1", "p-0-2", "p-0-3"]


def test_a_row_has_the_fields_of_its_event(tmp_path: Path) -> None:
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [numbered(0, 7)])
    (row,) = DeltaTable(tmp_path / PREDICTIONS).to_pyarrow_table().to_pylist()
    assert row == {
        "prediction_id": "p-0-7", "task": TASK, "date": date(2026, 11, 25), "task_revision": "r1",
        "occurred_at": NOON, "request_id": "request-p-0-7", "answer_number": 0, "api": "chat",
        "messages": '[{"role":"user","content":"where is my parcel?"}]', "tools": None, "tool_choice": None,
        "response_format": None, "parameters": '{"temperature":0.0}', "stream": False, "constrained": False,
        "truncated": False, "answer": "delivery", "text": None, "tool_calls": None, "refusal": None, "reasoning": None,
        "answer_truncated": False, "finish_reason": "stop", "model": "base", "adapter": None, "variant": "base",
        "confidence": 0.9, "confidence_raw": 0.95, "logprob": -0.1,
        "calibration": "support-desk-cal", "user_hash": "u", "session_hash": None,
        "app": "shop", "metadata": '{"channel":"mail"}', "gateway_version": None, "latency_ms": 12.5,
        "prompt_tokens": 9, "answer_tokens": 2, "cached_tokens": 4, "reasoning_tokens": 0, "redactions": 0,
        "surrogates": None,
    }  # fmt: skip


def test_feedback_and_requests_are_stored_once_too(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    for table, event in ((FEEDBACK, feedback("f", "p")), (REQUESTS, request("p"))):
        assert lake.append(table, [delivery(event, 0), delivery(event, 1)]) == 1
        assert lake.append(table, [delivery(event, 1), delivery(event, 2)]) == 0
        assert stored_ids(tmp_path, table) == [str(event.event_id)]
    (row,) = DeltaTable(tmp_path / REQUESTS).to_pyarrow_table().to_pylist()
    assert (row["status"], row["variant"], row["latency_ms"], row["confidence"]) == (502, "base", 3.0, None)


def test_partitions_have_offsets_of_their_own(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    lake.append(PREDICTIONS, [numbered(0, 10)])
    assert lake.append(PREDICTIONS, [numbered(1, 0), numbered(0, 10)]) == 1
    assert lake.stored_offsets(PREDICTIONS, [(TOPIC, 0), (TOPIC, 1), (TOPIC, 2)]) == {(TOPIC, 0): 10, (TOPIC, 1): 0}


def test_an_event_that_was_sent_twice_is_stored_once_and_moves_the_offset(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    once = prediction("p")
    assert lake.append(PREDICTIONS, [delivery(once, 0, partition=1)]) == 1
    assert lake.append(PREDICTIONS, [delivery(once, 5, partition=2)]) == 0
    assert DeltaLake(str(tmp_path)).append(PREDICTIONS, [delivery(once, 6, partition=2)]) == 0, "another process"
    assert stored_ids(tmp_path) == ["p"]
    assert lake.stored_offsets(PREDICTIONS, [(TOPIC, 2)]) == {(TOPIC, 2): 6}


def test_the_same_id_in_another_task_is_another_event(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    assert lake.append(PREDICTIONS, [delivery(prediction("p"), 0), delivery(prediction("p", task="other"), 1)]) == 2


def test_an_id_that_is_sent_again_with_another_time_is_stored_once(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    lake.append(PREDICTIONS, [delivery(prediction("p"), 0)])
    assert lake.append(PREDICTIONS, [delivery(prediction("p", NOON + timedelta(days=3)), 1)]) == 0


def test_another_broker_incarnation_invalidates_offsets_and_not_ids(
    tmp_path: Path,
) -> None:
    DeltaLake(str(tmp_path), "first").append(PREDICTIONS, [numbered(0, 5)])
    second = DeltaLake(str(tmp_path), "second")
    assert second.append(PREDICTIONS, [numbered(0, 0), delivery(prediction("p-0-5"), 1)]) == 1
    assert stored_ids(tmp_path) == ["p-0-0", "p-0-5"]


async def test_reading_resumes_after_the_stored_offset_and_starts_at_0_without_one(tmp_path: Path) -> None:
    ids = {TOPIC: str(uuid4())}

    async def topic_ids(names: object) -> dict[str, str]:
        return ids

    lake = DeltaLake(str(tmp_path))
    lake.append(PREDICTIONS, [numbered(0, 41)])
    assert await resume_from(lake, PREDICTIONS, topic_ids)([(TOPIC, 0), (TOPIC, 1)]) == {(TOPIC, 0): 42, (TOPIC, 1): 0}


async def test_a_recreated_topic_stops_the_writer_until_the_operator_resumes(tmp_path: Path) -> None:
    ids = {TOPIC: str(uuid4())}

    async def topic_ids(names: object) -> dict[str, str]:
        return ids

    partitions = [(TOPIC, 0)]
    lake = DeltaLake(str(tmp_path))
    await resume_from(lake, PREDICTIONS, topic_ids)(partitions)
    lake.append(PREDICTIONS, [numbered(0, 3)])
    assert await resume_from(DeltaLake(str(tmp_path)), PREDICTIONS, topic_ids)(partitions) == {(TOPIC, 0): 4}
    ids[TOPIC] = str(uuid4())
    for _ in range(2):
        with pytest.raises(MustStop, match="recreated") as stopped:
            await resume_from(DeltaLake(str(tmp_path)), PREDICTIONS, topic_ids)(partitions)
        assert "ratchet lake resume" in stopped.value.way_out
    next_lake = DeltaLake(str(tmp_path), "next")
    assert await resume_from(next_lake, PREDICTIONS, topic_ids)(partitions) == {(TOPIC, 0): 0}
    assert next_lake.append(PREDICTIONS, [delivery(prediction("p-0-3"), 0), delivery(prediction("new"), 1)]) == 1
    assert stored_ids(tmp_path) == ["new", "p-0-3"]


def test_late_and_unordered_events_are_in_the_partition_of_the_day_they_occurred_on(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    at = [NOON, NOON - timedelta(days=40), NOON + timedelta(hours=11, minutes=59), NOON - timedelta(days=1)]
    west = datetime(2026, 11, 25, 20, 30, tzinfo=timezone(timedelta(hours=-5)))  # The 26th in UTC.
    events = [prediction(f"p{n}", time) for n, time in enumerate([*at, west])]
    assert lake.append(PREDICTIONS, [delivery(event, n) for n, event in enumerate(events)]) == 5
    rows = DeltaTable(tmp_path / PREDICTIONS).to_pyarrow_table(columns=["date", "occurred_at"]).to_pylist()
    assert sorted(row["occurred_at"] for row in rows) == sorted(event.occurred_at for event in events)
    assert all(row["date"] == row["occurred_at"].astimezone(UTC).date() for row in rows)
    assert {row["date"].isoformat() for row in rows} == {"2026-11-25", "2026-10-16", "2026-11-24", "2026-11-26"}


def test_the_delta_log_contains_no_text(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    for offset in range(3):
        lake.append(PREDICTIONS, [numbered(0, offset)])
    DeltaTable(tmp_path / PREDICTIONS).optimize.compact()
    logged = b"".join(path.read_bytes() for path in (tmp_path / PREDICTIONS / "_delta_log").iterdir())
    assert b"parcel" not in logged, "statistics would retain text of deleted rows"


def test_an_unreachable_lake_has_the_records_redelivered(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    lake.append(PREDICTIONS, [numbered(0, 0)])
    log = tmp_path / PREDICTIONS / "_delta_log"
    log.rename(tmp_path / "moved")
    log.write_text("a file where the folder was")
    with pytest.raises(DependencyUnavailable):
        lake.append(PREDICTIONS, [numbered(0, 1)])
    log.unlink()
    (tmp_path / "moved").rename(log)
    assert lake.append(PREDICTIONS, [numbered(0, 0), numbered(0, 1)]) == 1


@pytest.mark.parametrize("left", [0, 100])
@pytest.mark.parametrize("table", [PREDICTIONS, FORGOTTEN])
def test_a_file_that_a_power_cut_left_shorter_has_the_records_redelivered(
    tmp_path: Path, table: str, left: int
) -> None:
    """It was taken for a fault of each record: all that was logged became dead letters."""
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [numbered(0, 0)])
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "somebody else", NOON)])
    (file,) = (tmp_path / table).rglob("*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    with pytest.raises(DependencyUnavailable, match=f"{tmp_path}/{PREDICTIONS}"):
        DeltaLake(str(tmp_path)).append(PREDICTIONS, [numbered(0, 1)])
    with pytest.raises(DependencyUnavailable):
        erase_subjects(str(tmp_path), [SubjectErasure(TASK, "another", NOON)])
    file.write_bytes(whole)
    assert DeltaLake(str(tmp_path)).append(PREDICTIONS, [numbered(0, 1)]) == 1


def test_earlier_events_of_an_erased_person_are_skipped_and_later_ones_are_stored(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    lake.append(PREDICTIONS, [delivery(prediction("a1", user="ann"), 0), delivery(prediction("b1", user="bob"), 1)])
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON + timedelta(hours=1))])
    late, later = prediction("a2", NOON + timedelta(hours=1), "ann"), prediction("a3", NOON + timedelta(hours=2), "ann")
    assert lake.append(PREDICTIONS, [delivery(late, 2), delivery(later, 3)]) == 1
    assert lake.append(REQUESTS, [delivery(request("a2", user="ann"), 0), delivery(request("b1", user="bob"), 1)]) == 1
    assert lake.append(FEEDBACK, [delivery(feedback("f1", "a1", user="ann"), 0)]) == 0
    assert stored_ids(tmp_path) == ["a3", "b1"]
    assert lake.stored_offsets(PREDICTIONS, [(TOPIC, 0)]) == {(TOPIC, 0): 3}, "skipped records are read once"


def test_feedback_on_a_skipped_prediction_is_skipped(tmp_path: Path) -> None:
    create_table(str(tmp_path), FORGOTTEN)
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    lake = DeltaLake(str(tmp_path))
    lake.append(PREDICTIONS, [delivery(prediction("a1", user="ann"), 0), delivery(prediction("b1", user="bob"), 1)])
    events = [feedback("f1", "a1", NOON + timedelta(days=1)), feedback("f2", "b1", NOON + timedelta(days=1))]
    assert lake.append(FEEDBACK, [delivery(event, n) for n, event in enumerate(events)]) == 1
    assert stored_ids(tmp_path, FEEDBACK) == [str(events[1].event_id)]


def test_a_deleted_lake_is_rebuilt_from_the_topics_row_for_row(tmp_path: Path) -> None:
    batches = [[numbered(n % 3, n // 3) for n in range(start, start + 20)] for start in range(0, 100, 20)]
    first, second = tmp_path / "first", tmp_path / "second"
    lake = DeltaLake(str(first))
    for batch in batches:
        lake.append(PREDICTIONS, batch)
    DeltaTable(first / PREDICTIONS).optimize.compact()
    rebuilt = DeltaLake(str(second))
    rebuilt.append(PREDICTIONS, [record for batch in reversed(batches) for record in batch])
    assert rows_hash(second) == rows_hash(first)


def test_a_table_gets_new_nullable_columns_and_an_older_writer_appends_to_a_newer_table(tmp_path: Path) -> None:
    schema = SCHEMAS[PREDICTIONS]
    old = schema.remove(schema.get_field_index("app"))
    create = DeltaTable.create(tmp_path / PREDICTIONS, schema=old, partition_by=["task", "date"], name=PREDICTIONS)
    lake = DeltaLake(str(tmp_path))
    assert lake.append(PREDICTIONS, [numbered(0, 0)]) == 1
    create.update_incremental()
    newer = create.to_pyarrow_table()
    assert newer["app"].to_pylist() == ["shop"]
    added = newer.append_column("language", [["da"]]).set_column(0, "prediction_id", [["from-the-future"]])
    write_deltalake(create, added, mode="append", schema_mode="merge")
    assert lake.append(PREDICTIONS, [numbered(0, 1)]) == 1
    rows = DeltaTable(tmp_path / PREDICTIONS).to_pyarrow_table(columns=["prediction_id", "language"]).to_pylist()
    assert {row["prediction_id"]: row["language"] for row in rows} == {
        "p-0-0": None, "from-the-future": "da", "p-0-1": None,
    }  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), max_size=60))
def test_of_any_deliveries_each_record_above_the_committed_offset_is_new_once(
    positions: list[tuple[int, int]],
) -> None:
    committed = {(TOPIC, 0): 5}
    fresh = new_deliveries([numbered(p, o) for p, o in positions], committed)
    expected = {(p, o) for p, o in positions if not (p == 0 and o <= 5)}
    assert sorted((d.partition, d.offset) for d in fresh) == sorted(expected)
