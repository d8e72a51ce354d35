from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from schemas.lake import PREDICTIONS
from services.prediction_log.storage import DeltaLake
from shared.storage.volume import task_volume
from tests.unit.prediction_log.deliveries import NOON, TASK, delivery, prediction


def test_volume_counts_the_answers_of_the_task_in_the_last_thirty_days(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    made = [prediction(f"p{n}", at=NOON - timedelta(days=10)) for n in range(20)]
    made += [prediction("two", at=NOON, answers=2), prediction("old", at=NOON - timedelta(days=31))]
    made.append(prediction("other", at=NOON, task="another"))
    lake.append(PREDICTIONS, [delivery(event, n) for n, event in enumerate(made)])
    volume = task_volume(str(tmp_path), TASK, NOON)
    assert (volume.answers, volume.days) == (22, 10.0)
    assert volume.per_month == pytest.approx(66.0)


def test_an_hour_of_traffic_is_taken_for_a_day_not_for_a_month(tmp_path: Path) -> None:
    made = [prediction(f"p{n}", at=NOON) for n in range(5)]
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [delivery(event, n) for n, event in enumerate(made)])
    assert task_volume(str(tmp_path), TASK, NOON + timedelta(hours=1)).per_month == 150.0


def test_a_lake_that_is_not_there_yet_has_no_volume(tmp_path: Path) -> None:
    assert task_volume(str(tmp_path / "none"), TASK, NOON).answers == 0
