"""What tansu's topics promise to keep and no longer promise, on the real broker and the real S3 server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from obstore.store import S3Store

from deploy.devstack.config import StackConfig
from deploy.devstack.object_store import open_bucket
from deploy.devstack.parts import s3
from deploy.devstack.tansu import BUCKET
from deploy.devstack.tansu.retention import delete_expired, partitions
from shared.kafka.clients import build_producer, end_offsets, open_admin, open_consumer
from shared.settings import Settings
from tests.integration.gateway_process import OwnBroker, own_broker
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.stack

SECOND = {"retention.ms": "1000"}


@dataclass(frozen=True)
class Tansu:
    """The broker, as its clients and as its object store see it."""

    broker: OwnBroker
    settings: Settings
    store: S3Store

    def create_topic(self, configs: dict[str, str], partitions: int = 1) -> str:
        name = f"t-{uuid4().hex[:8]}"
        with open_admin(self.settings, "test") as admin:
            admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
        return name

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[AIOKafkaProducer]:
        producer = build_producer(self.settings, "test")
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def produce(self, topic: str, *values: str, partition: int = 0) -> list[int]:
        """Send each value in a batch of its own. Returns their offsets."""
        async with self.producer() as producer:
            sent = [await producer.send_and_wait(topic, value.encode(), partition=partition) for value in values]
        return [record.offset for record in sent]

    async def read(self, topic: str, group: str | None = None, count: int | None = None) -> list[tuple[int, str]]:
        """Return offset and value of the records from the group's offset, or from the start; `count`: only so many."""
        partition = TopicPartition(topic, 0)
        end = (await end_offsets(self.settings, [partition]))[partition]
        found: list[tuple[int, str]] = []
        options = {"group_id": group, "auto_offset_reset": "earliest"}
        async with open_consumer(self.settings, **options) as consumer, asyncio.timeout(PATIENCE_SECONDS):
            consumer.assign([partition])
            while await consumer.position(partition) < end and len(found) != count:
                for records in (await consumer.getmany(timeout_ms=500, max_records=count)).values():
                    found += [(record.offset, record.value.decode()) for record in records]
            if group:
                await consumer.commit()
        return found

    async def ends(self, topic: str, count: int = 1) -> list[int]:
        found = await end_offsets(self.settings, [TopicPartition(topic, number) for number in range(count)])
        return [end for _, end in sorted(found.items())]

    def batches(self, topic: str) -> list[int]:
        """Return how many batches each partition has stored."""
        return sorted(len(found) for found in partitions(self.store, topic))

    def delete_expired(self, topic: str, now: datetime | None = None) -> int:
        """Delete what is expired `now`, by default all that may ever be. Returns how many batches of the topic."""
        before = sum(self.batches(topic))
        delete_expired(self.store, now or datetime.now(UTC) + timedelta(days=1))
        return before - sum(self.batches(topic))


@pytest.fixture(scope="module")
def tansu() -> Iterator[Tansu]:
    with own_broker("retention") as broker:
        broker.env.pop("KAFKA_HOME", None)
        settings = broker.start()
        yield Tansu(broker, settings, open_bucket(BUCKET, s3.environment(StackConfig.load(broker.home, broker.env))))


async def test_expired_batches_are_deleted_and_what_is_younger_is_read_from_the_start(tansu: Tansu) -> None:
    topic, began = tansu.create_topic(SECOND), datetime.now(UTC)
    await tansu.produce(topic, "a", "b", "c")
    expired = datetime.now(UTC)
    await asyncio.sleep(2.5)  # The store dates objects in whole seconds.
    await tansu.produce(topic, "d", "e")
    assert tansu.delete_expired(topic, began) == 0
    assert tansu.delete_expired(topic, expired + timedelta(seconds=1)) == 3
    assert await tansu.read(topic) == [(3, "d"), (4, "e")]
    assert await tansu.produce(topic, "f") == [5]
    assert await tansu.read(topic) == [(3, "d"), (4, "e"), (5, "f")]
    assert await tansu.ends(topic) == [6]


async def test_the_newest_batch_of_each_partition_stays_so_that_offsets_go_on(tansu: Tansu) -> None:
    topic = tansu.create_topic(SECOND, partitions=3)
    await tansu.produce(topic, "a", "b", "c")
    async with tansu.producer() as producer:  # Five records in the partition's last batch.
        batch = producer.create_batch()
        for value in (b"d", b"e", b"f", b"g", b"h"):
            batch.append(key=None, value=value, timestamp=None)
        await (await producer.send_batch(batch, topic, partition=0))
    await tansu.produce(topic, "x", "y", partition=1)
    assert tansu.delete_expired(topic) == 4
    assert tansu.batches(topic) == [1, 1]
    assert await tansu.ends(topic, 3) == [8, 2, 0]
    await asyncio.to_thread(tansu.broker.stop)
    await asyncio.to_thread(tansu.broker.start)
    assert await tansu.ends(topic, 3) == [8, 2, 0], "it has nothing but the store"
    assert await tansu.produce(topic, "i") == [8]
    assert await tansu.produce(topic, "z", partition=1) == [2]
    assert [offset for offset, _ in await tansu.read(topic)] == [3, 4, 5, 6, 7, 8]
    assert tansu.delete_expired(topic) == 2
    assert tansu.delete_expired(topic) == 0


@pytest.mark.parametrize("configs", [{**SECOND, "cleanup.policy": "compact"}, {"retention.ms": "-1"}, {}])
async def test_topics_that_are_compacted_or_kept_forever_stay_whole(tansu: Tansu, configs: dict[str, str]) -> None:
    topic = tansu.create_topic(configs)
    await tansu.produce(topic, "a", "b", "c")
    assert tansu.delete_expired(topic, datetime.now(UTC) + timedelta(days=10_000)) == 0
    assert await tansu.read(topic) == [(0, "a"), (1, "b"), (2, "c")]


async def test_a_retention_that_an_operator_shortened_counts(tansu: Tansu) -> None:
    topic = tansu.create_topic({"retention.ms": "-1"})
    await tansu.produce(topic, "a", "b")
    assert tansu.delete_expired(topic) == 0
    with open_admin(tansu.settings, "test") as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, SECOND)])
    assert tansu.delete_expired(topic) == 1


async def test_a_group_behind_what_was_deleted_goes_on_with_what_is_left(tansu: Tansu) -> None:
    topic, group = tansu.create_topic(SECOND), uuid4().hex
    await tansu.produce(topic, "a", "b", "c", "d")
    assert await tansu.read(topic, group, count=2) == [(0, "a"), (1, "b")]
    assert tansu.delete_expired(topic) == 3
    await tansu.produce(topic, "e")
    assert await tansu.read(topic, group) == [(3, "d"), (4, "e")]
    assert await tansu.read(topic, group) == []


async def test_what_a_consumer_has_not_read_yet_may_be_deleted_while_it_reads(tansu: Tansu) -> None:
    topic = tansu.create_topic(SECOND)
    await tansu.produce(topic, *(str(number) for number in range(60)))
    deleting = asyncio.create_task(asyncio.to_thread(tansu.delete_expired, topic))
    found: list[tuple[int, str]] = []
    while not deleting.done():
        found = await tansu.read(topic)
        assert found[-1] == (59, "59") and all(str(offset) == value for offset, value in found)
    assert await deleting == 59
    assert await tansu.read(topic) == [(59, "59")]
