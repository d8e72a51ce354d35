"""prediction_log keeps each prediction once, whatever is delivered."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.base import Message, Role, Variant, utc_now
from schemas.lake import PREDICTIONS
from schemas.predictions import PredictionLogged
from services.prediction_log.domain import new_deliveries, prediction_row, roll_up
from services.prediction_log.storage import DeltaLake
from shared.delivery import Delivery


def delivery(partition: int, offset: int, user: str = "u") -> Delivery[PredictionLogged]:
    event = PredictionLogged(
        task="support-desk",
        task_revision="r1",
        prediction_id=f"p-{partition}-{offset}",
        messages=(Message(role=Role.USER, content="where is my parcel?"),),
        answer="delivery",
        model="base",
        variant=Variant.BASE,
        user_hash=user,
        latency_ms=12.5,
    )
    return Delivery(event, "predictions.logged.v1", partition, offset, MappingProxyType({}))


def kept(lake: DeltaLake) -> list[str]:
    return sorted(row["prediction_id"] for row in lake.since(utc_now().replace(hour=0, minute=0)))


def test_a_redelivered_prediction_is_kept_once(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    batch = [delivery(0, n) for n in range(3)]
    assert lake.append(PREDICTIONS, batch, prediction_row) == 3
    assert lake.append(PREDICTIONS, [*batch, delivery(0, 3)], prediction_row) == 1
    assert kept(lake) == ["p-0-0", "p-0-1", "p-0-2", "p-0-3"]


def test_partitions_have_offsets_of_their_own(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    lake.append(PREDICTIONS, [delivery(0, 10)], prediction_row)
    assert lake.append(PREDICTIONS, [delivery(1, 0), delivery(0, 10)], prediction_row) == 1


def test_a_broker_that_lost_its_topics_is_not_mistaken_for_a_replay(tmp_path: Path) -> None:
    DeltaLake(str(tmp_path), "first").append(PREDICTIONS, [delivery(0, 5)], prediction_row)
    assert DeltaLake(str(tmp_path), "second").append(PREDICTIONS, [delivery(0, 0)], prediction_row) == 1
    assert kept(DeltaLake(str(tmp_path))) == ["p-0-0", "p-0-5"]


def test_a_forgotten_person_has_no_rows(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    lake.append(PREDICTIONS, [delivery(0, 0, "ann"), delivery(0, 1, "bob")], prediction_row)
    lake.forget("support-desk", "ann")
    assert kept(lake) == ["p-0-1"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), max_size=60))
def test_any_deliveries_in_any_order_keep_each_record_above_the_committed_once(
    places: list[tuple[int, int]],
) -> None:
    committed = {("predictions.logged.v1", 0): 5}
    fresh = new_deliveries([delivery(p, o) for p, o in places], committed)
    expected = {(p, o) for p, o in places if not (p == 0 and o <= 5)}
    assert sorted((d.partition, d.offset) for d in fresh) == sorted(expected)


def test_a_roll_up_counts_each_hour_and_variant() -> None:
    rows = [{**prediction_row(delivery(0, n).event).model_dump(), "confidence": 0.95} for n in range(4)]
    (event,) = roll_up(rows, utc_now())
    assert event.predictions == 4
    assert event.answers[0].count == 4
    assert event.confidence_histogram[9] == 4
    assert event.latency_ms_p95 == pytest.approx(12.5)
