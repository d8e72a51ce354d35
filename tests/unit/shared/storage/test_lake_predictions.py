"""A prediction that feedback is about is found in the lake without reading the texts of all others."""

from __future__ import annotations

import random
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler

from schemas.lake import PREDICTIONS
from services.prediction_log import parquet_files
from services.prediction_log.storage import DeltaLake
from shared.conversation import answer_of_row, call_of_row
from shared.storage.predictions import LakePredictions
from tests.unit.prediction_log.deliveries import NOON, TASK, delivery, prediction

TODAY = date(2026, 11, 28)


class CountedFile:
    """A file of the object store that counts the bytes read of it."""

    def __init__(self, file: Any, path: str, read: Counter[str]) -> None:
        self._file, self._path, self._read = file, path, read

    def read(self, size: int) -> bytes:
        data = bytes(self._file.read(size))
        self._read[self._path] += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return how many bytes were read of each data file."""
    counts: Counter[str] = Counter()

    def open_input_file(handler: Any, path: str) -> pa.PythonFile:
        return pa.PythonFile(CountedFile(handler._handler.open_input_file(path), path, counts), mode="r")

    monkeypatch.setattr(DeltaStorageHandler, "open_input_file", open_input_file)
    return counts


def test_texts_are_read_only_of_the_row_groups_that_have_the_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Counter[str]
) -> None:
    size, texts, lake = 500_000, random.Random(1), DeltaLake(str(tmp_path))
    monkeypatch.setattr(parquet_files, "ROW_GROUP_BYTES", size)
    for day in range(3):
        times = [NOON + timedelta(days=day, minutes=minute) for minute in range(3)]
        events = [prediction(f"p{day}{n}", at, text=texts.randbytes(size).hex()) for n, at in enumerate(times)]
        lake.append(PREDICTIONS, [delivery(event, 3 * day + n) for n, event in enumerate(events)])
    files = DeltaTable(tmp_path / PREDICTIONS).file_uris()
    assert sum(Path(path).stat().st_size for path in files) > 9 * size
    read.clear()
    found = LakePredictions(str(tmp_path)).find(TASK, ["p11", "absent"], TODAY)
    assert list(found) == ["p11"] and len(found["p11"].answer.text) == 2 * size
    assert len(read) == 3
    assert size < sum(read.values()) < 2 * size, "one text, and of each file where its rows are"


@pytest.mark.parametrize("rewritten", [False, True])
def test_what_is_found_is_what_the_whole_rows_say(tmp_path: Path, rewritten: bool) -> None:
    """A rewritten file's newest row is some microseconds later than the table's log says."""
    lake, delta = DeltaLake(str(tmp_path)), tmp_path / PREDICTIONS
    times = [NOON + timedelta(days=number // 6, microseconds=1_537 * (number // 2)) for number in range(18)]
    events = [prediction(f"p{number}", at, user=f"u{number}") for number, at in enumerate(times)]
    events += [prediction("p1", times[1], task="other"), prediction("old", NOON - timedelta(days=100))]
    for first in range(0, len(events), 5):
        lake.append(PREDICTIONS, [delivery(event, first + n) for n, event in enumerate(events[first : first + 5])])
    DeltaTable(delta).delete("prediction_id = 'p3'")
    if rewritten:
        DeltaTable(delta).optimize.compact()
    rows = {(row["task"], row["prediction_id"]): row for row in DeltaTable(delta).to_pyarrow_table().to_pylist()}
    for wanted in (["p3"], ["p1"], ["p0", "p3", "p8", "old"], [f"p{number}" for number in range(18)]):
        found = LakePredictions(str(tmp_path)).find(TASK, wanted, TODAY)
        assert found.keys() == set(wanted) - {"p3", "old"}
        for prediction_id, answered in found.items():
            row = rows[TASK, prediction_id]
            assert (answered.task, answered.occurred_at, answered.user_hash) == (
                TASK, row["occurred_at"], row["user_hash"],
            )  # fmt: skip
            assert (answered.call, answered.answer) == (call_of_row(row), answer_of_row(row))
