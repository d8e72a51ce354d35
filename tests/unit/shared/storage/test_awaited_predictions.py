"""Feedback waits for its prediction once, however long what comes after it waits."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta

import pytest

from schemas.predictions import FeedbackGiven
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.delivery import Delivery
from shared.storage.predictions import FEEDBACK_PATIENCE, AnsweredPrediction, AwaitedPredictions

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)


class EmptyLake:
    def find(self, task: str, prediction_ids: Collection[str], around: date) -> dict[str, AnsweredPrediction]:
        return {}

    def newest(self, until: datetime) -> datetime | None:
        return self.made

    made: datetime | None = None


def feedback(prediction_id: str, recorded_at: datetime = NOON) -> Delivery[FeedbackGiven]:
    event = FeedbackGiven(
        task="support-desk", task_revision="r1", prediction_id=prediction_id, kind="thumbs", positive=False
    )
    return Delivery(event, "feedback.given.v1", 0, 0, {}, int(recorded_at.timestamp() * 1_000))


async def test_what_was_given_up_does_not_wait_anew_while_its_batch_waits_for_later_feedback() -> None:
    now = NOON
    awaited = AwaitedPredictions(EmptyLake(), lambda: now)
    for minute in range(30):  # A batch that is redelivered, each time with one more whose prediction is not there.
        now = NOON + timedelta(minutes=minute)
        for number in range(minute + 1):
            is_over = minute - number > 4
            with pytest.raises(InvalidMessage if is_over else DependencyUnavailable):
                await awaited.look_up([feedback(f"p{number}")])


async def test_feedback_that_waited_in_kafka_while_the_lake_went_on_does_not_wait_again() -> None:
    """Else an application that sends one unknown id a batch would hold up all feedback by the patience each time."""
    now, lake = NOON + timedelta(hours=1), EmptyLake()
    awaited = AwaitedPredictions(lake, lambda: now)
    old, new = now - FEEDBACK_PATIENCE - timedelta(seconds=1), now - timedelta(seconds=1)
    for lake.made in (None, old + timedelta(minutes=1)):  # It is behind, too, or one partition of it may be.
        with pytest.raises(DependencyUnavailable):
            await awaited.look_up([feedback("p1", old)])
    lake.made = now
    with pytest.raises(InvalidMessage):
        await awaited.look_up([feedback("p1", old)])
    with pytest.raises(DependencyUnavailable):
        await awaited.look_up([feedback("p2", new)])
    with pytest.raises(DependencyUnavailable):
        await awaited.look_up([feedback("p3")._replace(timestamp=0)])


async def test_what_nobody_looks_for_any_more_is_forgotten() -> None:
    now = NOON
    awaited = AwaitedPredictions(EmptyLake(), lambda: now)
    for number in range(9):
        now = NOON + number * FEEDBACK_PATIENCE
        with pytest.raises(DependencyUnavailable):
            await awaited.look_up([feedback(f"p{number}")])
    assert len(awaited._missing) == 2
