"""DuplicateFinder are known by their ids: exactly, however old they are, and whoever stored the first."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

from schemas.lake import PREDICTIONS
from services.prediction_log.deduplication import duplicates
from services.prediction_log.deduplication.id_window import IdWindow, hash_ids
from services.prediction_log.storage import DeltaLake
from shared.kafka.delivery import Delivery
from tests.unit.prediction_log.deliveries import NOON, delivery, prediction, stored_ids

SMALL = 10
"""A window that the tests' rows do not fit in."""


def minute(number: int) -> Delivery[object]:
    """The prediction of that minute, sent once for each."""
    return delivery(prediction(f"p{number}", NOON + timedelta(minutes=number)), number)


def again(number: int, offset: int) -> Delivery[object]:
    """The same fact at another offset."""
    return delivery(prediction(f"p{number}", NOON + timedelta(minutes=number)), offset)


def fill(folder: Path, rows: int, window: int = SMALL) -> DeltaLake:
    lake = DeltaLake(str(folder), window=window)
    for first in range(0, rows, 5):
        assert lake.append(PREDICTIONS, [minute(n) for n in range(first, first + 5)]) == 5
    return lake


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("compacted", [False, True])
def test_a_duplicate_that_is_older_than_the_window_is_known_by_its_time(
    tmp_path: Path, restarted: bool, compacted: bool
) -> None:
    lake = fill(tmp_path, 60)
    if compacted:
        DeltaTable(tmp_path / PREDICTIONS).optimize.compact()
    if restarted:
        lake = DeltaLake(str(tmp_path), window=SMALL)
    assert lake.append(PREDICTIONS, [again(n, 100 + n) for n in range(60)]) == 0
    assert lake.append(PREDICTIONS, [minute(200)]) == 1


def test_a_late_fact_is_not_taken_for_a_duplicate(tmp_path: Path) -> None:
    lake = fill(tmp_path, 60)
    late = prediction("late", NOON + timedelta(minutes=3))
    assert lake.append(PREDICTIONS, [delivery(late, 100)]) == 1
    assert lake.append(PREDICTIONS, [delivery(late, 101)]) == 0


def test_two_facts_whose_hashes_are_the_same_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "hash_ids", lambda tasks, ids: np.zeros(len(list(ids)), np.int64))
    lake = fill(tmp_path, 20, window=1_000)
    assert lake.append(PREDICTIONS, [again(3, 100), minute(101), again(19, 102)]) == 1
    assert len(stored_ids(tmp_path)) == 21


def test_a_fact_that_another_process_stored_in_between_is_known(tmp_path: Path) -> None:
    lake, other = DeltaLake(str(tmp_path)), DeltaLake(str(tmp_path))
    for number in range(10):
        mine, theirs = prediction(f"mine-{number}"), prediction(f"theirs-{number}")
        assert lake.append(PREDICTIONS, [delivery(mine, number, partition=0)]) == 1
        assert other.append(PREDICTIONS, [delivery(mine, 2 * number, 1), delivery(theirs, 2 * number + 1, 1)]) == 1
        assert lake.append(PREDICTIONS, [delivery(theirs, number, partition=2)]) == 0


def test_a_fact_whose_row_was_deleted_is_stored_when_it_comes_again(tmp_path: Path) -> None:
    lake = fill(tmp_path, 5)
    DeltaTable(tmp_path / PREDICTIONS).delete("prediction_id = 'p3'")
    assert lake.append(PREDICTIONS, [again(3, 100)]) == 1


def test_the_window_holds_at_least_its_capacity_and_at_most_twice_that_and_says_what_it_let_go() -> None:
    window, partition = IdWindow(100), ("task", NOON.date())
    keys = hash_ids(["t"] * 1_000, map(str, range(1_000)))
    for start in range(0, 1_000, 25):
        window.add(keys[start : start + 25], {partition: start + 24})
        held = window.contains(keys)
        assert held[max(0, start - 75) : start + 25].all(), "the newest are there"
        assert len(window) <= 200
        not_held = np.flatnonzero(~held[: start + 25])
        assert (not_held <= window.horizon.get(partition, -1)).all(), "and of the others it is known that they are not"


def test_a_large_window_finds_what_it_has_and_nothing_else() -> None:
    window = IdWindow(150_000)
    keys = hash_ids(["t"] * 200_000, map(str, range(200_000)))
    for part in np.array_split(keys, 7):
        window.add(part, {})
    assert window.contains(keys[-150_000:]).all()
    assert not window.contains(hash_ids(["u"] * 200_000, map(str, range(200_000)))).any()
