"""Kafka batches: records of one partition that are sent, acknowledged and compressed together.

aiokafka's `send` makes two coroutines, a future and a result for each record, which cost three times what the record
itself does. A batch has one future.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple, cast

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder

from shared.spool import Record

_JSON = ("content-type", b"application/json")


class SentBatch(NamedTuple):
    """Records of one topic, in order. `acknowledged`: done once the broker has stored them, or with its error."""

    records: list[Record]
    acknowledged: asyncio.Future[Any]


class SentRecords(NamedTuple):
    """What became of records: the batches that are on their way and, after an error, what could not be sent."""

    batches: list[SentBatch]
    unsent: list[Record]
    error: Exception | None


class _NumberedBatch(NamedTuple):
    """`number`: among the batches of its partition."""

    number: int
    topic: str
    partition: int
    records: list[Record]
    builder: BatchBuilder


def headers_of(record: Record) -> list[tuple[str, bytes]]:
    """The headers of a record in Kafka."""
    return [_JSON, *record.headers]


def partition_of(key: bytes, partitions: Sequence[int], _: Sequence[int] = ()) -> int:
    """The same of a topic's partitions, in order, that every other Kafka client chooses for this key."""
    return partitions[(cast(int, murmur2(key)) & 0x7FFFFFFF) % len(partitions)]


async def send_batches(producer: AIOKafkaProducer, records: Sequence[Record]) -> SentRecords:
    """Send records, without waiting until they are acknowledged. Those of a partition keep their order."""
    batches = deque[_NumberedBatch]()
    sent: list[SentBatch] = []
    try:
        batches += await _batches(producer, records)
        while batches:
            batch = batches[0]
            future = await producer.send_batch(batch.builder, batch.topic, partition=batch.partition)
            sent.append(SentBatch(batch.records, future))
            batches.popleft()
    except (KafkaError, OSError) as error:
        unsent = [record for batch in batches for record in batch.records] if batches else list(records)
        return SentRecords(sent, unsent, error)
    return SentRecords(sent, [], None)


async def _batches(producer: AIOKafkaProducer, records: Sequence[Record]) -> list[_NumberedBatch]:
    """Divide records by partition, and into batches as large as the producer's may be. The first batches of all
    partitions come first, because a partition's second one waits until its first is sent."""
    partitions: dict[str, list[int]] = {}
    divided: defaultdict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        topic = record.topic
        if topic not in partitions:
            partitions[topic] = sorted(await producer.partitions_for(topic))
        divided[topic, partition_of(record.key, partitions[topic])].append(record)
    batches = [
        batch
        for (topic, partition), own in divided.items()
        for batch in _batches_of_partition(producer, topic, partition, own)
    ]
    return sorted(batches, key=attrgetter("number"))


def _batches_of_partition(
    producer: AIOKafkaProducer, topic: str, partition: int, records: Sequence[Record]
) -> list[_NumberedBatch]:
    batch = _NumberedBatch(0, topic, partition, [], producer.create_batch())
    batches = [batch]
    for record in records:
        if not _append(batch, record):
            batch = _NumberedBatch(batch.number + 1, topic, partition, [], producer.create_batch())
            batches.append(batch)
            _append(batch, record)  # The first record of a batch may have any size.
    batch.builder.close()
    return batches


def _append(batch: _NumberedBatch, record: Record) -> bool:
    """Return False, and close the batch, if it is full."""
    headers = headers_of(record)
    if batch.builder.append(timestamp=None, key=record.key, value=record.value, headers=headers) is None:
        return False
    batch.records.append(record)
    return True
