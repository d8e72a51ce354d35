"""The transport on a real broker: dead letters, their replay, and events that survive a crashed handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from faststream.kafka import KafkaBroker

from schemas.predictions import FeedbackGiven, SubjectForgotten
from shared.delivery import Delivery
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.letters import read_letters, replay_letters
from shared.settings import Settings
from shared.topics import create_topics
from shared.transport import Consumers, Publisher, build_broker

pytestmark = pytest.mark.stack


def feedback(mark: str, number: int) -> FeedbackGiven:
    return FeedbackGiven(
        task=f"t-{mark}", task_revision="r1", prediction_id=f"{mark}-{number}", kind="thumbs", positive=True
    )


@asynccontextmanager
async def consuming(settings: Settings, subscribe: Callable[[Consumers], None]) -> AsyncIterator[KafkaBroker]:
    broker = build_broker(settings, "prediction_log")
    subscribe(Consumers(broker, "prediction_log", settings))
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.fixture
def settings(stack_settings: Settings) -> Settings:
    return stack_settings.model_copy(update={"retry_base_seconds": 0.01, "retry_attempts": 2})


async def test_creating_topics_again_changes_nothing(settings: Settings) -> None:
    assert create_topics(settings) == []


async def test_a_buried_event_is_replayed_to_its_service_alone(settings: Settings) -> None:
    mark, broken, seen = uuid4().hex, True, []

    async def handler(event: FeedbackGiven) -> None:
        if event.task != f"t-{mark}":
            return
        if broken:
            raise InvalidMessage("not today")
        seen.append(event.prediction_id)

    async with consuming(settings, lambda consumers: consumers.on(FeedbackGiven, handler)) as broker:
        gateway = Publisher(broker, "gateway")
        await gateway.publish(feedback(mark, 1))
        await broker.publish(b"{poison " + mark.encode(), "feedback.given.v1", key=b"k")
        await gateway.publish(feedback(mark, 2))
        async with asyncio.timeout(30):
            while True:
                letters = [one for one in await read_letters(settings, "prediction_log") if mark.encode() in one.value]
                if len(letters) == 3:
                    break
        assert {letter.topic for letter in letters} == {"feedback.given.v1"}
        assert any("not today" in letter.error for letter in letters)
        broken = False
        assert await replay_letters(settings, "prediction_log") >= 3
        await until(lambda: len(seen) == 2)
    again = [one for one in await read_letters(settings, "prediction_log") if mark.encode() in one.value]
    assert [one.value[:7] for one in again] == [b"{poison"], "what is poison still is, and is kept"
    assert again[0].headers["x-ratchet-replayed"] == "1"


async def test_what_a_stopped_consumer_did_not_finish_is_delivered_again(settings: Settings) -> None:
    mark, seen = uuid4().hex, []

    async def away(event: SubjectForgotten) -> None:
        if event.task == f"t-{mark}":
            raise DependencyUnavailable("the database is away")

    async def back(event: SubjectForgotten) -> None:
        if event.task == f"t-{mark}":
            seen.append(event.subject_hash)

    async with consuming(settings, lambda consumers: consumers.on(SubjectForgotten, away)) as broker:
        event = SubjectForgotten(task=f"t-{mark}", task_revision="r", subject_hash="ann")
        await Publisher(broker, "console").publish(event)
        await asyncio.sleep(2.0)
    async with consuming(settings, lambda consumers: consumers.on(SubjectForgotten, back)):
        await until(lambda: seen == ["ann"])


async def test_batches_carry_their_positions(settings: Settings) -> None:
    mark = uuid4().hex
    seen: list[Delivery[FeedbackGiven]] = []

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        seen.extend(d for d in deliveries if d.event.task == f"t-{mark}")

    async with consuming(settings, lambda consumers: consumers.on_batch(FeedbackGiven, handler)) as broker:
        for number in range(20):
            await Publisher(broker, "gateway").publish(feedback(mark, number))
        await until(lambda: len(seen) == 20)
    places = {(d.partition, d.offset) for d in seen}
    assert len(places) == 20
