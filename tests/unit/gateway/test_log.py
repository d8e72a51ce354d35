from __future__ import annotations

import asyncio
import contextlib

import pytest

from schemas.base import Event
from schemas.predictions import FeedbackGiven
from services.gateway.log import KafkaLog, Observations
from services.gateway.metrics import Metrics
from shared.errors import DependencyUnavailable


class Broker:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.open = asyncio.Event()
        self.open.set()
        self.third = asyncio.Event()

    async def publish(self, event: Event) -> None:
        await self.open.wait()
        self.events.append(event)
        if len(self.events) == 3:
            self.third.set()


def event() -> FeedbackGiven:
    return FeedbackGiven(task="t", task_revision="r", prediction_id="p", kind="thumbs", positive=True)


async def test_a_broker_that_does_not_answer_is_an_event_log_that_is_away() -> None:
    broker = Broker()
    broker.open.clear()
    with pytest.raises(DependencyUnavailable, match=r"within 0\.05 s"):
        await KafkaLog(broker, 0.05).append(event())
    broker.open.set()
    await KafkaLog(broker, 0.05).append(event(), event())
    assert len(broker.events) == 2


async def test_observations_over_the_limit_are_dropped_and_counted_and_the_rest_are_sent() -> None:
    broker, metrics = Broker(), Metrics()
    observations = Observations(broker, 3, metrics)
    for _ in range(5):
        observations.offer(event())
    assert metrics.observations_dropped._value.get() == 2
    shipping = asyncio.create_task(observations.ship_forever())
    await asyncio.wait_for(broker.third.wait(), 5.0)
    shipping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await shipping
    assert len(broker.events) == 3
