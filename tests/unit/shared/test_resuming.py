"""Where a consumer whose store knows its offsets resumes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from faststream.kafka import KafkaBroker, TestKafkaBroker

from schemas.predictions import FeedbackGiven
from shared.errors import MustStop
from shared.kafka import consumers
from shared.kafka.consumers import Consumers
from shared.kafka.delivery import Delivery, RecordPosition, TopicPartition
from shared.kafka.resuming import ResumingListener, resume_where_stored
from shared.settings import Settings
from tests.unit.shared.test_consumers import feedback
from tests.waiting import until

PARTITION = TopicPartition("feedback.given.v1", 0)
VALUE = feedback().model_dump_json().encode()


class Log:
    """A partition of which the broker has the records from `start` up to `end`, and its consumer."""

    def __init__(self, start: int, end: int) -> None:
        self._start, self._end = start, end
        self.sought = start
        """Where the consumer is."""
        self.is_paused = False

    def grow(self, to: int) -> None:
        self._end = to

    def read(self) -> tuple[ConsumerRecord, ...]:
        """Return the next two records, or what is left of the log."""
        offsets = range(self.sought, min(self.sought + 2, self._end))
        self.sought = offsets.stop
        return tuple(ConsumerRecord(*PARTITION, offset, 0, 0, None, VALUE, None, 0, 0, ()) for offset in offsets)

    async def commit(self) -> None: ...

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, self._end)

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, self._start)

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        self.sought = self._start

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought = offset

    def pause(self, *partitions: TopicPartition) -> None:
        self.is_paused = True

    def resume(self, *partitions: TopicPartition) -> None:
        self.is_paused = False


@pytest.mark.parametrize(
    ("stored", "start", "sought", "skipped"),
    [
        ({}, 0, 0, []),
        ({}, 7, 7, [6]),
        ({PARTITION: 3}, 0, 3, []),
        ({PARTITION: 3}, 7, 7, [6]),
        ({PARTITION: 7}, 7, 7, []),
    ],
)
async def test_a_store_moves_past_what_the_broker_deleted_before_it_was_read(
    stored: dict[TopicPartition, int], start: int, sought: int, skipped: list[int]
) -> None:
    """A cycle's fence may lie there: it waited for a record that nothing brings, where none came later."""
    log, moved = Log(start, 7), list[RecordPosition]()

    async def offsets(partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return stored

    async def on_skipped(position: RecordPosition) -> None:
        moved.append(position)

    def halt(problem: MustStop) -> None:
        raise problem

    listener = ResumingListener("a service", resume_where_stored(offsets, log.ends), log.ends, halt, on_skipped)
    listener.subscriber = SimpleNamespace(consumer=log)
    await listener.on_partitions_assigned([PARTITION])
    assert log.is_paused
    await until(lambda: not log.is_paused)
    assert (log.sought, [position.offset for position in moved]) == (sought, skipped)


@pytest.mark.parametrize("end", [0, 7])
async def test_a_log_that_ends_before_what_the_store_has_read_stops_the_service(end: int) -> None:
    """It lost records, or its topic was made anew: new records would be taken for old ones."""
    log, problems = Log(0, end), list[MustStop]()

    async def stored(partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 8)

    listener = ResumingListener("a service", stored, log.ends, problems.append)
    listener.subscriber = SimpleNamespace(consumer=log)
    await listener.on_partitions_assigned([PARTITION])
    await until(lambda: problems or not log.is_paused)
    assert log.is_paused, "nothing is delivered"
    assert "ratchet lake resume" in problems[0].way_out


class Replica:
    """A service with a store of its own that reads a log of five records in batches of two, as FastStream has it do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.stored, self.batches = Log(0, 5), 0, list[list[int]]()
        self.handles, self.may_end = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(consumers, "end_offsets", lambda _, partitions: self.log.ends(partitions))
        self._broker = KafkaBroker("nowhere:9092")
        service = Consumers(self._broker, "prediction_log", Settings())
        service.on_batch(FeedbackGiven, self._store, resume=self._next_offsets)
        self._subscriber: Any = self._broker.subscribers[0]

    async def _store(self, deliveries: list[Delivery[FeedbackGiven]]) -> None:
        self.handles.set()
        await self.may_end.wait()
        self.batches.append([delivery.offset for delivery in deliveries])
        self.stored = deliveries[-1].offset + 1

    async def _next_offsets(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, self.stored)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with TestKafkaBroker(self._broker):
            self._subscriber.consumer = self.log
            self._subscriber.parser._setup(self.log)
            yield

    async def assign(self) -> None:
        """Give it the partition, and wait until it has sought its store's offset."""
        await self._subscriber._listener.on_partitions_revoked([PARTITION])
        await self._subscriber._listener.on_partitions_assigned([PARTITION])
        await until(lambda: not self.log.is_paused)

    async def read(self) -> None:
        """Read to the end of the log, which takes three batches, or nine of a log that it does not leave."""
        for _ in range(9):
            await until(lambda: not self.log.is_paused)
            if records := self.log.read():
                await self._subscriber.consume(records)


async def test_a_partition_is_read_on_after_a_rebalance_while_a_batch_of_it_was_handled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store was asked before it had the batch: it was refused, sought past, and sought back, again and again."""
    replica = Replica(monkeypatch)
    async with replica.running():
        await replica.assign()
        reading = asyncio.create_task(replica.read())
        await replica.handles.wait()
        await replica.assign()
        replica.may_end.set()
        await reading
    assert replica.batches == [[0, 1], [0, 1], [2, 3], [4]]


async def test_a_log_that_starts_again_is_read_from_where_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the pause is before what was refused is delivered again: its rewind comes before the seek."""
    replica = Replica(monkeypatch)
    replica.may_end.set()
    async with replica.running():
        await replica.assign()
        await replica.read()
        replica.log.sought = 0  # As a consumer does where the broker no longer has the offset.
        replica.log.grow(to=7)
        await replica.read()
    assert replica.batches == [[0, 1], [2, 3], [4], [5, 6]]
