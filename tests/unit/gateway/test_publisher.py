"""The publisher, with a broker that stores or refuses each record."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, NotLeaderForPartitionError

from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.shipper.publisher import BatchPublisher
from services.gateway.shipper.redaction import RefusedRecord
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.settings import Settings
from shared.spool import Record

TRACE = (("traceparent", b"00-1-1-01"),)
JSON = ("content-type", b"application/json")


class Producer:
    """Stores records. `refuse`: the errors of keys; `breaks_at`: how many are stored before it breaks."""

    def __init__(self, refuse: dict[bytes, KafkaError] | None = None, breaks_at: int = 1_000) -> None:
        self.stored: list[tuple[bytes, bytes, list[Any]]] = []
        self.stopped = False
        self._refuse = refuse or {}
        self._breaks_at = breaks_at

    async def send(self, topic: str, value: bytes, *, key: bytes, headers: list[Any]) -> asyncio.Future[Any]:
        if len(self.stored) == self._breaks_at:
            raise KafkaError("closed")
        if len(value) > 10_000:
            raise MessageSizeTooLargeError
        future = asyncio.get_running_loop().create_future()
        if (error := self._refuse.get(key)) is not None:
            future.set_exception(error)
        else:
            self.stored.append((key, value, headers))
            future.set_result(None)
        return future

    async def stop(self) -> None:
        self.stopped = True


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


def keys(left: list[Any]) -> list[bytes]:
    return [each.record.key if isinstance(each, RefusedRecord) else each.key for each in left]


async def test_records_are_sent_in_order_with_their_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publishing = Publishing(producer := Producer(), tmp_path, monkeypatch)
    sent = [*records(3), Record("t", b"k", b"v", TRACE)]
    assert await publishing.publisher.publish_once(sent) == []
    assert producer.stored == [(record.key, record.value, [JSON, *record.headers]) for record in sent]
    assert publishing.status.shipped["t"] == 4


async def test_records_that_fail_are_returned_in_order_and_the_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = Producer({b"key 1": NotLeaderForPartitionError(), b"key 4": NotLeaderForPartitionError()})
    publishing = Publishing(producer, tmp_path, monkeypatch)
    assert keys(await publishing.publisher.publish_once(records(6))) == [b"key 1", b"key 4"]
    assert producer.stopped, "an idempotent producer cannot continue after a failure"
    assert publishing.status.shipped["t"] == 4


async def test_what_could_not_be_sent_after_an_error_is_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = Producer({b"key 1": NotLeaderForPartitionError()}, breaks_at=2)
    publishing = Publishing(producer, tmp_path, monkeypatch)
    left = await publishing.publisher.publish_once(records(6))
    assert keys(left) == [b"key 1", b"key 3", b"key 4", b"key 5"]
    assert [key for key, _, _ in producer.stored] == [b"key 0", b"key 2"]


async def test_what_is_too_large_for_the_producer_or_the_broker_is_a_dead_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = Publishing(producer := Producer({b"key 1": MessageSizeTooLargeError()}), tmp_path, monkeypatch)
    sent = [*records(2), Record("t", b"huge", b"x" * 20_000), Record("t", b"last", b"x")]
    assert await publishing.publisher.publish_once(sent) == []
    assert [key for key, _, _ in producer.stored] == [b"key 0", b"last"]
    assert sorted(publishing.dead) == [b"huge", b"key 1"]


async def test_dead_letters_wait_for_the_records_so_that_a_redelivered_batch_does_not_repeat_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = Publishing(Producer({b"key 1": NotLeaderForPartitionError()}), tmp_path, monkeypatch)
    left = await publishing.publisher.publish_once([*refused(b"a"), *records(3)])
    assert keys(left) == [b"key 1", b"a"]
    assert isinstance(left[-1], RefusedRecord)
    assert publishing.dead == []


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
