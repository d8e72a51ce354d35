"""A consumer whose store is the authority on positions, on a real broker: where it starts, and when it must not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from aiokafka import TopicPartition

from schemas.catalog import topic_of
from schemas.predictions import FeedbackGiven
from shared.errors import DependencyUnavailable, MustStop
from shared.kafka.broker import Broker, build_broker
from shared.kafka.clients import connect_admin, end_offsets
from shared.kafka.consumers import Consumers
from shared.kafka.dead_letters import read_dead_letters
from shared.kafka.delivery import Delivery
from shared.kafka.publisher import Publisher
from shared.kafka.topics import create_topics
from shared.settings import Settings

pytestmark = pytest.mark.stack

TOPIC = topic_of(FeedbackGiven)
PLACES = [(TOPIC.name, number) for number in range(TOPIC.partitions)]
NAME = "prediction_log"
Batch = list[Delivery[FeedbackGiven]]


@dataclass
class Store:
    """What a service keeps: its next offset by partition, and every delivery as it came."""

    stands: dict[tuple[str, int], int | None] = field(default_factory=dict)
    seen: Batch = field(default_factory=list)
    asked: list[Sequence[tuple[str, int]]] = field(default_factory=list)

    async def resume(self, places: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int | None]:
        self.asked.append(places)
        return {place: self.stands[place] for place in places if place in self.stands}

    async def take(self, deliveries: Batch) -> None:
        self.seen.extend(deliveries)
        for one in deliveries:
            self.stands[one.topic, one.partition] = one.offset + 1

    def given(self, mark: str) -> list[str]:
        return sorted(one.event.prediction_id for one in self.seen if one.event.task == f"t-{mark}")


@asynccontextmanager
async def consuming(settings: Settings, store: Store) -> AsyncIterator[Broker]:
    broker = build_broker(settings, NAME)
    Consumers(broker, NAME, settings).on_batch(FeedbackGiven, store.take, resume=store.resume)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


async def ends(settings: Settings) -> dict[tuple[str, int], int | None]:
    found = await end_offsets(settings, [TopicPartition(*place) for place in PLACES])
    return {(place.topic, place.partition): end for place, end in found.items()}


async def publish(settings: Settings, mark: str, names: Sequence[str]) -> None:
    broker = build_broker(settings, "gateway")
    await broker.connect()
    try:
        for name in names:
            event = FeedbackGiven(task=f"t-{mark}", task_revision="r", prediction_id=name, kind="thumbs", positive=True)
            await Publisher(broker, "gateway").publish(event)
    finally:
        await broker.stop()


async def make_anew(settings: Settings, mark: str) -> None:
    """Delete the topic and create it; it has fewer records then than a store has read of any one partition."""
    admin = connect_admin(settings, "test")
    admin.delete_topics([TOPIC.name])
    await until(lambda: TOPIC.name not in admin.list_topics())
    admin.close()
    create_topics(settings)
    await publish(settings, mark, ["new"])


def places(store: Store) -> list[tuple[int, int]]:
    return sorted((one.partition, one.offset) for one in store.seen)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.fixture
def settings(stack_settings: Settings) -> Settings:
    return stack_settings.model_copy(update={"retry_base_seconds": 0.01, "retry_attempts": 2})


@pytest.fixture
def mark() -> str:
    return uuid4().hex


async def test_a_consumer_starts_where_its_store_is_whatever_its_group_committed(settings: Settings, mark: str) -> None:
    begun = await ends(settings)
    await publish(settings, mark, ["a", "b", "c"])
    first = Store(dict(begun))
    async with consuming(settings, first):
        await until(lambda: len(first.given(mark)) == 3)
    restored = Store(dict(begun))  # The group has committed the end; this store is a backup from before.
    async with consuming(settings, restored):
        await until(lambda: len(restored.given(mark)) == 3)
    assert restored.given(mark) == ["a", "b", "c"]
    assert len(restored.seen) == 3, "and nothing of before"


async def test_a_store_that_was_deleted_is_filled_from_the_start_of_the_log(settings: Settings, mark: str) -> None:
    await publish(settings, mark, ["a", "b"])
    async with consuming(settings, full := Store({place: 0 for place in PLACES})):
        await until(lambda: full.given(mark) == ["a", "b"])
    deleted = Store({place: None for place in PLACES})
    async with consuming(settings, deleted):
        await until(lambda: len(deleted.seen) == len(full.seen))
    assert places(deleted) == places(full)


async def test_partitions_the_store_does_not_speak_for_start_where_the_group_was(settings: Settings, mark: str) -> None:
    await publish(settings, mark, ["a"])
    async with consuming(settings, first := Store()):
        await until(lambda: first.given(mark) == ["a"])
    await publish(settings, mark, ["b"])
    async with consuming(settings, second := Store()):
        await until(lambda: second.given(mark) == ["b"])


async def test_after_a_rebalance_every_member_goes_on_where_the_store_is(settings: Settings, mark: str) -> None:
    store = Store(await ends(settings))
    async with consuming(settings, store):
        await publish(settings, mark, [f"a{n}" for n in range(10)])
        await until(lambda: len(store.given(mark)) == 10)
        async with consuming(settings, store):
            await until(lambda: len(store.asked) >= 3)  # alone; then both
            await publish(settings, mark, [f"b{n}" for n in range(10)])
            await until(lambda: len(store.given(mark)) == 20)
        await publish(settings, mark, [f"c{n}" for n in range(10)])
        await until(lambda: len(store.given(mark)) == 30)
    assert len(set(places(store))) == len(places(store)), "nothing was delivered again that the store had"


async def test_a_store_that_is_away_delays_the_start_and_loses_nothing(settings: Settings, mark: str) -> None:
    class Away(Store):
        async def resume(self, places: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int | None]:
            if len(self.asked) < 2:
                self.asked.append(places)
                raise DependencyUnavailable("the lake is away")
            return await super().resume(places)

    store = Away(await ends(settings))
    await publish(settings, mark, ["a"])
    async with consuming(settings, store):
        await until(lambda: store.given(mark) == ["a"])
    assert len(store.asked) == 3


async def test_a_store_ahead_of_the_broker_stops_the_service_and_gets_nothing(settings: Settings, mark: str) -> None:
    store = Store({place: (end or 0) + 1_000 for place, end in (await ends(settings)).items()})
    await publish(settings, mark, ["new"])
    async with consuming(settings, store) as broker, asyncio.timeout(30):
        problem = await broker.halted()
        await publish(settings, mark, ["newer"])
        await asyncio.sleep(1.0)
    assert "the broker's log ends at" in problem.reason
    assert problem.way_out.endswith("ratchet lake go-on")
    assert store.seen == []


async def test_a_topic_made_anew_under_a_consumer_stops_it(settings: Settings, mark: str) -> None:
    store = Store(await ends(settings))
    async with consuming(settings, store) as broker:
        await publish(settings, mark, [f"a{n}" for n in range(40)])
        await until(lambda: len(store.given(mark)) == 40)
        if settings.kafka_idempotence:
            await make_anew(settings, mark)
            async with asyncio.timeout(60):
                problem = await broker.halted()
    if not settings.kafka_idempotence:  # tansu loses its groups with its topics: there a consumer joins anew.
        await make_anew(settings, mark)
        async with consuming(settings, store) as broker, asyncio.timeout(60):
            problem = await broker.halted()
    assert "made anew" in problem.reason
    assert "new" not in store.given(mark)


async def test_a_handler_that_must_stop_is_called_once_and_its_batch_is_kept_in_the_log(
    settings: Settings, mark: str
) -> None:
    calls = 0

    class Broken(Store):
        async def take(self, deliveries: Batch) -> None:
            nonlocal calls
            calls += 1
            raise MustStop("another cluster's records")

    begun = await ends(settings)
    await publish(settings, mark, ["a", "b"])
    async with consuming(settings, Broken(dict(begun))) as broker, asyncio.timeout(30):
        await broker.halted()
        await publish(settings, mark, ["c"])
        await asyncio.sleep(1.0)
    assert calls == 1
    assert not [one for one in await read_dead_letters(settings, NAME) if mark.encode() in one.value]
    async with consuming(settings, mended := Store()):  # by the group: nothing was acknowledged
        await until(lambda: mended.given(mark) == ["a", "b", "c"])
