"""A consumer that resumes from its store's offsets, on a real broker: where it starts, and when it must stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
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
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack

TOPIC = topic_of(FeedbackGiven)
PARTITIONS = [(TOPIC.name, number) for number in range(TOPIC.partitions)]
NAME = "prediction_log"
Batch = list[Delivery[FeedbackGiven]]


@dataclass
class Store:
    """A service's store: its next offset by partition, and every delivery in order."""

    next_offsets: dict[tuple[str, int], int | None] = field(default_factory=dict)
    received: Batch = field(default_factory=list)
    asked: list[Sequence[tuple[str, int]]] = field(default_factory=list)

    async def resume(self, partitions: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int | None]:
        self.asked.append(partitions)
        return {partition: self.next_offsets[partition] for partition in partitions if partition in self.next_offsets}

    async def take(self, deliveries: Batch) -> None:
        self.received.extend(deliveries)
        for delivery in deliveries:
            self.next_offsets[delivery.topic, delivery.partition] = delivery.offset + 1

    def received_of(self, mark: str) -> list[str]:
        return sorted(delivery.event.prediction_id for delivery in self.received if delivery.event.task == f"t-{mark}")


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
    found = await end_offsets(settings, [TopicPartition(*partition) for partition in PARTITIONS])
    return {(partition.topic, partition.partition): end for partition, end in found.items()}


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
    """Delete the topic and create it again; it then has fewer records than a store has read of any partition."""
    admin = connect_admin(settings, "test")
    admin.delete_topics([TOPIC.name])
    await until(lambda: TOPIC.name not in admin.list_topics())
    admin.close()
    create_topics(settings)
    await publish(settings, mark, ["new"])


def positions(store: Store) -> list[tuple[int, int]]:
    return sorted((delivery.partition, delivery.offset) for delivery in store.received)


@pytest.fixture
def settings(stack_settings: Settings) -> Settings:
    return stack_settings


@pytest.fixture
def mark() -> str:
    return uuid4().hex


async def test_a_consumer_starts_at_its_stores_offset_whatever_its_group_committed(
    settings: Settings, mark: str
) -> None:
    at_start = await ends(settings)
    await publish(settings, mark, ["a", "b", "c"])
    first = Store(dict(at_start))
    async with consuming(settings, first):
        await until(lambda: len(first.received_of(mark)) == 3)
    restored = Store(dict(at_start))  # The group has committed the end; this store is a backup from before.
    async with consuming(settings, restored):
        await until(lambda: len(restored.received_of(mark)) == 3)
    assert restored.received_of(mark) == ["a", "b", "c"]
    assert len(restored.received) == 3, "and no earlier record"


async def test_a_store_that_was_deleted_is_filled_from_the_start_of_the_log(settings: Settings, mark: str) -> None:
    await publish(settings, mark, ["a", "b"])
    async with consuming(settings, full := Store({partition: 0 for partition in PARTITIONS})):
        await until(lambda: full.received_of(mark) == ["a", "b"])
    deleted = Store({partition: None for partition in PARTITIONS})
    async with consuming(settings, deleted):
        await until(lambda: len(deleted.received) == len(full.received))
    assert positions(deleted) == positions(full)


async def test_partitions_unknown_to_the_store_start_at_the_groups_offset(settings: Settings, mark: str) -> None:
    await publish(settings, mark, ["a"])
    async with consuming(settings, first := Store()):
        await until(lambda: first.received_of(mark) == ["a"])
    await publish(settings, mark, ["b"])
    async with consuming(settings, second := Store()):
        await until(lambda: second.received_of(mark) == ["b"])


async def test_after_a_rebalance_every_member_resumes_at_the_stores_offset(settings: Settings, mark: str) -> None:
    store = Store(await ends(settings))
    async with consuming(settings, store):
        await publish(settings, mark, [f"a{n}" for n in range(10)])
        await until(lambda: len(store.received_of(mark)) == 10)
        async with consuming(settings, store):
            await until(lambda: len(store.asked) >= 3)  # alone; then both
            await publish(settings, mark, [f"b{n}" for n in range(10)])
            await until(lambda: len(store.received_of(mark)) == 20)
        await publish(settings, mark, [f"c{n}" for n in range(10)])
        await until(lambda: len(store.received_of(mark)) == 30)
    assert len(set(positions(store))) == len(positions(store)), "nothing that the store had was redelivered"


async def test_a_store_that_is_unavailable_delays_the_start_and_loses_nothing(settings: Settings, mark: str) -> None:
    class Unavailable(Store):
        async def resume(self, partitions: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int | None]:
            if len(self.asked) < 2:
                self.asked.append(partitions)
                raise DependencyUnavailable("the lake is away")
            return await super().resume(partitions)

    store = Unavailable(await ends(settings))
    await publish(settings, mark, ["a"])
    async with consuming(settings, store):
        await until(lambda: store.received_of(mark) == ["a"])
    assert len(store.asked) == 3


async def test_a_store_ahead_of_the_broker_stops_the_service_and_is_given_nothing(
    settings: Settings, mark: str
) -> None:
    store = Store({partition: (end or 0) + 1_000 for partition, end in (await ends(settings)).items()})
    await publish(settings, mark, ["new"])
    async with consuming(settings, store) as broker, asyncio.timeout(PATIENCE_SECONDS):
        problem = await broker.halted()
        await publish(settings, mark, ["newer"])
        await asyncio.sleep(1.0)
    assert "the broker's log ends at" in problem.reason
    assert problem.way_out.endswith("ratchet lake resume")
    assert store.received == []


@pytest.mark.apache_kafka("tansu answers a fetch beyond a topic's end with nothing: it is noticed at the next start")
async def test_a_topic_made_anew_under_a_running_consumer_stops_it(settings: Settings, mark: str) -> None:
    store = Store(await ends(settings))
    async with consuming(settings, store) as broker:
        await publish(settings, mark, [f"a{n}" for n in range(40)])
        await until(lambda: len(store.received_of(mark)) == 40)
        await make_anew(settings, mark)
        async with asyncio.timeout(PATIENCE_SECONDS):
            problem = await broker.halted()
    assert "made anew" in problem.reason
    assert "new" not in store.received_of(mark)


async def test_a_handler_that_must_stop_is_called_once_and_its_batch_stays_in_the_log(
    settings: Settings, mark: str
) -> None:
    calls = 0

    class Broken(Store):
        async def take(self, deliveries: Batch) -> None:
            nonlocal calls
            calls += 1
            raise MustStop("another cluster's records")

    at_start = await ends(settings)
    await publish(settings, mark, ["a", "b"])
    async with consuming(settings, Broken(dict(at_start))) as broker, asyncio.timeout(PATIENCE_SECONDS):
        await broker.halted()
        await publish(settings, mark, ["c"])
        await asyncio.sleep(1.0)
    assert calls == 1
    assert not [letter for letter in await read_dead_letters(settings, NAME) if mark.encode() in letter.value]
    async with consuming(settings, repaired := Store()):  # by the group: nothing was acknowledged
        await until(lambda: repaired.received_of(mark) == ["a", "b", "c"])
