"""Duplicates are found by their ids: exactly, however old they are, and whichever process stored the first."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from schemas.lake import PREDICTIONS
from services.prediction_log.deduplication import duplicates
from services.prediction_log.deduplication.duplicates import DuplicateFinder
from services.prediction_log.deduplication.id_window import IdWindow, hash_ids
from services.prediction_log.parquet_files import DataFile, data_files, filesystem, read_columns
from services.prediction_log.storage import DeltaLake
from services.prediction_log.tables import SCHEMAS
from shared.kafka.delivery import Delivery
from tests.unit.prediction_log import lake_rows
from tests.unit.prediction_log.deliveries import NOON, delivery, prediction, stored_ids
from tests.unit.prediction_log.lake_rows import opened, write

SMALL = 10
"""A window too small for the tests' rows."""


def minute(number: int) -> Delivery[object]:
    """Return the prediction of a minute, at the offset of that number."""
    return delivery(prediction(f"p{number}", NOON + timedelta(minutes=number)), number)


def duplicate(number: int, offset: int) -> Delivery[object]:
    """Return the same prediction at another offset."""
    return delivery(prediction(f"p{number}", NOON + timedelta(minutes=number)), offset)


def fill(folder: Path, rows: int, window: int = SMALL) -> DeltaLake:
    lake = DeltaLake(str(folder), window=window)
    for first in range(0, rows, 5):
        assert lake.append(PREDICTIONS, [minute(n) for n in range(first, first + 5)]) == 5
    return lake


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("compacted", [False, True])
def test_a_duplicate_that_is_older_than_the_window_is_found_by_its_time(
    tmp_path: Path, restarted: bool, compacted: bool
) -> None:
    lake = fill(tmp_path, 60)
    if compacted:
        DeltaTable(tmp_path / PREDICTIONS).optimize.compact()
    if restarted:
        lake = DeltaLake(str(tmp_path), window=SMALL)
    assert lake.append(PREDICTIONS, [duplicate(n, 100 + n) for n in range(60)]) == 0
    assert lake.append(PREDICTIONS, [minute(200)]) == 1


def test_a_prediction_that_is_sent_again_with_another_time_is_looked_up_in_no_file_older_than_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application sends it again under its own id, and it is dated anew."""
    lake = fill(tmp_path, 20, window=1_000)
    read = []

    def recorded(file: DataFile, *options: Any) -> Iterator[pa.RecordBatch]:
        read.append(file.path)
        return read_columns(file, *options)

    monkeypatch.setattr(duplicates, "read_columns", recorded)
    again = [prediction(f"p{number}", NOON + timedelta(hours=1)) for number in (11, 18)]
    assert lake.append(PREDICTIONS, [delivery(event, 100 + n) for n, event in enumerate(again)]) == 0
    by_age = sorted(data_files(DeltaTable(tmp_path / PREDICTIONS)), key=lambda file: file.newest)
    assert read == [file.path for file in reversed(by_age[2:])]


def test_other_ids_take_no_memory_as_objects_while_one_is_looked_up(tmp_path: Path) -> None:
    """All ids of a task became a set: gigabytes, at each attempt to commit."""
    stored = 20_000
    rows = [lake_rows.prediction(f"p{number}", NOON + timedelta(microseconds=number)) for number in range(stored)]
    write(tmp_path, PREDICTIONS, rows)
    finder = DuplicateFinder(filesystem(str(tmp_path), PREDICTIONS), "prediction_id", capacity=2 * stored)
    finder.sync(opened(tmp_path, PREDICTIONS))
    again, new = lake_rows.prediction("p7", NOON + timedelta(hours=1)), lake_rows.prediction("new", NOON)
    batch = pa.Table.from_pylist([again, new], schema=SCHEMAS[PREDICTIONS])
    finder.find(batch)  # What is imported at the first call is no part of it.
    tracemalloc.start()
    try:
        assert finder.find(batch).tolist() == [True, False]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * stored, "bytes: those read of the file, while an id as an object has 50 and more"


def test_a_late_event_is_not_mistaken_for_a_duplicate(tmp_path: Path) -> None:
    lake = fill(tmp_path, 60)
    late = prediction("late", NOON + timedelta(minutes=3))
    assert lake.append(PREDICTIONS, [delivery(late, 100)]) == 1
    assert lake.append(PREDICTIONS, [delivery(late, 101)]) == 0


def test_two_events_with_the_same_hash_are_both_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "hash_ids", lambda tasks, ids: np.zeros(len(list(ids)), np.int64))
    lake = fill(tmp_path, 20, window=1_000)
    assert lake.append(PREDICTIONS, [duplicate(3, 100), minute(101), duplicate(19, 102)]) == 1
    assert len(stored_ids(tmp_path)) == 21


def test_an_event_that_another_process_stored_meanwhile_is_a_duplicate(tmp_path: Path) -> None:
    lake, other = DeltaLake(str(tmp_path)), DeltaLake(str(tmp_path))
    for number in range(10):
        mine, theirs = prediction(f"mine-{number}"), prediction(f"theirs-{number}")
        assert lake.append(PREDICTIONS, [delivery(mine, number, partition=0)]) == 1
        assert other.append(PREDICTIONS, [delivery(mine, 2 * number, 1), delivery(theirs, 2 * number + 1, 1)]) == 1
        assert lake.append(PREDICTIONS, [delivery(theirs, number, partition=2)]) == 0


def test_an_event_whose_row_was_deleted_is_stored_when_it_is_sent_again(tmp_path: Path) -> None:
    lake = fill(tmp_path, 5)
    DeltaTable(tmp_path / PREDICTIONS).delete("prediction_id = 'p3'")
    assert lake.append(PREDICTIONS, [duplicate(3, 100)]) == 1


def test_the_window_contains_between_its_capacity_and_twice_that_and_the_horizon_covers_the_rest() -> None:
    window, partition = IdWindow(100), ("task", NOON.date())
    keys = hash_ids(["t"] * 1_000, map(str, range(1_000)))
    for start in range(0, 1_000, 25):
        window.add(keys[start : start + 25], {partition: start + 24})
        contained = window.contains(keys)
        assert contained[max(0, start - 75) : start + 25].all(), "the newest are in the window"
        assert len(window) <= 200
        missing = np.flatnonzero(~contained[: start + 25])
        assert (missing <= window.horizon.get(partition, -1)).all(), "all ids outside the window are before its horizon"


def test_a_large_window_contains_its_ids_and_no_others() -> None:
    window = IdWindow(150_000)
    keys = hash_ids(["t"] * 200_000, map(str, range(200_000)))
    for part in np.array_split(keys, 7):
        window.add(part, {})
    assert window.contains(keys[-150_000:]).all()
    assert not window.contains(hash_ids(["u"] * 200_000, map(str, range(200_000)))).any()
