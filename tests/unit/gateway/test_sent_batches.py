"""Batches of records for Kafka, as aiokafka builds them, with a broker that stores or refuses each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, NotLeaderForPartitionError
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch

from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.shipper.publisher import BatchPublisher
from services.gateway.shipper.redaction import RefusedRecord
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.settings import Settings
from shared.spool import Record

ZSTD = 4
HEADER_BYTES = 61
PARTITIONS = (0, 1, 2)
TRACE = (("traceparent", b"00-1-1-01"),)
JSON = ("content-type", b"application/json")


class Producer:
    """Stores batches that aiokafka itself builds, of at most `batch_bytes`. `refuse`: the error of a batch, if any."""

    def __init__(self, batch_bytes: int = 1_000, refuse: Any = lambda partition, keys: None) -> None:
        self.batches: list[tuple[int, list[Any]]] = []
        self.stopped = False
        self._batch_bytes = batch_bytes
        self._refuse = refuse

    async def partitions_for(self, topic: str) -> set[int]:
        return set(PARTITIONS)

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(self._batch_bytes, ZSTD)

    async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> asyncio.Future[Any]:
        assert batch.closed(), "aiokafka would wait for more records"
        records = list(DefaultRecordBatch(bytes(batch._build())))
        future = asyncio.get_running_loop().create_future()
        if (error := self._refuse(partition, [record.key for record in records])) is not None:
            future.set_exception(error)
        else:
            self.batches.append((partition, records))
            future.set_result(None)
        return future

    async def send_and_wait(self, topic: str, value: bytes, key: bytes, headers: Any) -> None:
        batch = self.create_batch()
        batch.append(timestamp=None, key=key, value=value, headers=headers)
        batch.close()
        await (await self.send_batch(batch, topic, partition=partition_of(key)))

    async def stop(self) -> None:
        self.stopped = True

    def keys(self, partition: int) -> list[bytes]:
        return [record.key for of, records in self.batches if of == partition for record in records]


def partition_of(key: bytes) -> int:
    """The partition that aiokafka chooses for a key."""
    partition: int = DefaultPartitioner()(key, list(PARTITIONS), list(PARTITIONS))
    return partition


class Publishing:
    def __init__(self, producer: Producer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.status, self.dead = ShipperStatus(), list[bytes]()
        self.refuses_dead_letter: Any = lambda key: False
        self.publisher = BatchPublisher(Settings(home=home), self._dead_letter, self.status)

        async def started(publisher: BatchPublisher) -> Producer:
            publisher._producer = producer  # type: ignore[assignment]  # as far as the publisher uses it
            return producer

        monkeypatch.setattr(BatchPublisher, "_started_producer", started)

    async def _dead_letter(self, record: Record, error: Exception) -> None:
        if self.refuses_dead_letter(record.key):
            raise DependencyUnavailable("Kafka is away")
        self.dead.append(record.key)


def records(count: int, size: int = 100) -> list[Record]:
    return [Record("t", b"key %d" % number, b"%d" % number * size) for number in range(count)]


async def test_records_go_to_the_partition_of_their_key_in_order_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = Producer()
    publishing = Publishing(producer, tmp_path, monkeypatch)
    sent = records(40)
    assert await publishing.publisher.publish_once(sent) == []
    for partition in PARTITIONS:
        own = [record.key for record in sent if partition_of(record.key) == partition]
        assert len(own) > 5
        assert producer.keys(partition) == own
    stored = {record.key: record.value for _, batch in producer.batches for record in batch}
    assert stored == {record.key: record.value for record in sent}
    assert len(producer.batches) > 2 * len(PARTITIONS), "a batch is no larger than the producer's may be"
    assert {of for of, _ in producer.batches[: len(PARTITIONS)]} == set(PARTITIONS)
    assert publishing.status.shipped["t"] == 40


async def test_a_record_larger_than_a_batch_is_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = Producer()
    publishing = Publishing(producer, tmp_path, monkeypatch)
    key = b"same"
    sent = [Record("t", key, b"a"), Record("t", key, b"b" * 5_000), Record("t", key, b"c")]
    assert await publishing.publisher.publish_once(sent) == []
    assert [[record.value for record in batch] for _, batch in producer.batches] == [[b"a"], [b"b" * 5_000], [b"c"]]


async def test_the_publisher_sends_a_records_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = Producer()
    publishing = Publishing(producer, tmp_path, monkeypatch)
    assert await publishing.publisher.publish_once([Record("t", b"k", b"v", TRACE), Record("t", b"k", b"v")]) == []
    ((_, stored),) = producer.batches
    assert [list(record.headers) for record in stored] == [[JSON, *TRACE], [JSON]]


async def test_records_of_a_batch_that_fails_are_returned_in_order_and_the_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(partition: int, keys: list[bytes]) -> KafkaError | None:
        return NotLeaderForPartitionError() if partition == 1 else None

    producer = Producer(refuse=refuse)
    publishing = Publishing(producer, tmp_path, monkeypatch)
    sent = records(40)
    failed = await publishing.publisher.publish_once(sent)
    assert failed == [record for record in sent if partition_of(record.key) == 1]
    assert producer.stopped, "an idempotent producer cannot continue after a failure"
    assert publishing.status.shipped["t"] == 40 - len(failed)


async def test_what_could_not_be_sent_after_an_error_is_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closing(Producer):
        async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> asyncio.Future[Any]:
            if len(self.batches) == 2:
                raise KafkaError("closed")
            return await super().send_batch(batch, topic, partition=partition)

    producer = Closing()
    publishing = Publishing(producer, tmp_path, monkeypatch)
    sent = records(40)
    failed = await publishing.publisher.publish_once(sent)
    stored = {record.key for _, batch in producer.batches for record in batch}
    assert stored
    for partition in PARTITIONS:
        own = [record for record in sent if partition_of(record.key) == partition and record.key not in stored]
        assert [record for record in failed if record in own] == own
    assert {record.key for record in failed} == {record.key for record in sent} - stored  # type: ignore[union-attr]


async def test_a_batch_too_large_for_the_broker_is_sent_one_by_one_and_only_what_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(partition: int, keys: list[bytes]) -> KafkaError | None:
        return MessageSizeTooLargeError() if len(keys) > 1 or keys == [b"key 7"] else None

    producer = Producer(refuse=refuse)
    publishing = Publishing(producer, tmp_path, monkeypatch)
    sent = records(20)
    assert await publishing.publisher.publish_once(sent) == []
    stored = [record.key for _, batch in producer.batches for record in batch]
    assert sorted([*stored, b"key 7"]) == sorted(record.key for record in sent)
    assert publishing.dead == [b"key 7"]


def refused(*keys: bytes) -> list[RefusedRecord]:
    return [RefusedRecord(Record("t", key, b"x"), InvalidMessage("no JSON")) for key in keys]


async def test_a_dead_letter_is_published_once_though_a_later_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = Publishing(Producer(), tmp_path, monkeypatch)
    fails = iter([False, True, False])
    publishing.refuses_dead_letter = lambda key: next(fails)
    await publishing.publisher.publish([*refused(b"a", b"b"), *records(1)])
    assert publishing.dead == [b"a", b"b"]
    assert (publishing.status.dead_lettered, publishing.status.shipped["t"]) == (2, 1)


async def test_dead_letters_wait_for_the_records_so_that_a_redelivered_batch_does_not_repeat_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(partition: int, keys: list[bytes]) -> KafkaError | None:
        return NotLeaderForPartitionError() if partition == 1 else None

    publishing = Publishing(Producer(refuse=refuse), tmp_path, monkeypatch)
    sent = records(40)
    left = await publishing.publisher.publish_once([*refused(b"a"), *sent])
    assert left[:-1] == [record for record in sent if partition_of(record.key) == 1]
    assert isinstance(left[-1], RefusedRecord)
    assert publishing.dead == []


async def test_no_dead_letter_is_published_while_no_producer_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = Publishing(Producer(), tmp_path, monkeypatch)

    async def unstarted(publisher: BatchPublisher) -> Producer:
        raise DependencyUnavailable("Kafka is away")

    monkeypatch.setattr(BatchPublisher, "_started_producer", unstarted)
    with pytest.raises(DependencyUnavailable):
        await publishing.publisher.publish_once([*refused(b"a"), *records(1)])
    assert publishing.dead == []


async def test_a_record_that_fails_on_its_own_is_returned_and_what_came_before_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(partition: int, keys: list[bytes]) -> KafkaError | None:
        if len(keys) > 1:
            return MessageSizeTooLargeError()
        return {b"key 1": MessageSizeTooLargeError(), b"key 2": NotLeaderForPartitionError()}.get(keys[0])

    class OnePartition(Producer):
        async def partitions_for(self, topic: str) -> set[int]:
            return {0}

    producer = OnePartition(refuse=refuse)
    publishing = Publishing(producer, tmp_path, monkeypatch)
    left = await publishing.publisher.publish_once(records(4))
    assert [each.record.key if isinstance(each, RefusedRecord) else each.key for each in left] == [
        b"key 2", b"key 3", b"key 1",
    ]  # fmt: skip
    assert [record.key for _, batch in producer.batches for record in batch] == [b"key 0"]
