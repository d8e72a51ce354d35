"""Resuming from a store: consumers that start at the offsets their store has read, not at those of their group.

A group's committed offsets lag behind the store, and know nothing of a store that was deleted or restored. So at each
assignment the store is asked, the consumer seeks, and only then are records delivered. A log that is shorter than what
the store has read is noticed here too: it is not the log that was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import IllegalStateError, KafkaError

from shared.errors import DependencyUnavailable, MustStop
from shared.kafka.delivery import RecordPosition, TopicPartition

Resume = Callable[[Sequence[TopicPartition]], Awaitable[Mapping[TopicPartition, int | None]]]
"""The partitions just assigned → the next offset to read of each that the store knows; 0 or None: the log's start.
Partitions left out start at the group's offset. May raise MustStop; other failures are retried."""

ReadOffsets = Callable[[Sequence[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]]
FIRST_PAUSE_SECONDS = 0.2
MAX_PAUSE_SECONDS = 10.0
logger = logging.getLogger(__name__)


def resume_where_stored(stored: ReadOffsets, ends: ReadOffsets) -> Resume:
    """Return the resume of a service that stores its next offsets in its database (shared/storage/offsets.py).

    A partition that the database does not know is read from its start. One that ends before what was read of it starts
    at the group's offset: whether its topic was lost is for the lake's writer to say, which stops then.
    """

    async def resume(partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        known, ended = await stored(partitions), await ends(partitions)
        return {each: offset for each in partitions if (offset := known.get(each, 0)) <= ended[each]}

    return resume


class ResumingListener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Pauses newly assigned partitions until the store was asked and the consumer has sought its offsets.

    The seek runs in a task of its own: if the group waited for a slow store, it would take this member for dead.
    """

    def __init__(
        self,
        name: str,
        resume: Resume,
        ends: Callable[[Sequence[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]],
        halt: Callable[[MustStop], None],
        on_skipped: Callable[[RecordPosition], Awaitable[None]] | None = None,
    ) -> None:
        """`on_skipped`: called with the last record of a partition that the broker has deleted and the store lacks."""
        self._name = name
        self._resume = resume
        self._ends = ends
        self._halt = halt
        self._on_skipped = on_skipped
        self.subscriber: Any = None  # FastStream's, whose consumer seeks; it makes the consumer when it starts.
        self._seek_task: asyncio.Task[None] | None = None
        # The lowest offset to expect of each partition: a lower one means that the log was cut or made anew meanwhile.
        self._floors: dict[TopicPartition, int] = {}
        self.generation = 0
        """Counts assignments and seeks: what was delivered in an earlier generation says nothing of this one."""

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._reset()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self.seek_again(assigned)

    def handled(self, last: Mapping[TopicPartition, int], generation: int) -> None:
        """Note that these offsets were handled, and all before them since the assignment.

        `generation`: when they were delivered. After an assignment meanwhile the store may have been asked before it
        had them: then the consumer reads them again, and they are to be expected.
        """
        for partition, offset in last.items():
            if generation == self.generation and partition in self._floors:
                self._floors[partition] = max(self._floors[partition], offset + 1)

    def expects(self, first: Mapping[TopicPartition, int]) -> bool:
        """Return True if records from these offsets on can be handled; otherwise, call `seek_again`."""
        below = [partition for partition, offset in first.items() if offset < self._floors.get(partition, 0)]
        if below:
            logger.error("%s: %s restarts below what was read of it", self._name, below)
        return not below

    def seek_again(self, partitions: Iterable[TopicPartition]) -> None:
        """Ask the store of these partitions and seek, as after an assignment. Nothing may seek after this call."""
        self._reset()
        self._start_seek(list(partitions))

    def _reset(self) -> None:
        self.generation += 1
        self._floors.clear()
        if self._seek_task is not None:
            self._seek_task.cancel()
            self._seek_task = None

    def _start_seek(self, partitions: Sequence[TopicPartition]) -> None:
        if partitions:
            consumer = self.subscriber.consumer
            with contextlib.suppress(IllegalStateError):  # Revoked meanwhile: the next assignment calls again.
                consumer.pause(*partitions)  # Before the first fetch, which needs offsets that are not known yet.
            self._seek_task = asyncio.create_task(self._seek_with_retries(consumer, partitions))

    async def _seek_with_retries(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._seek(consumer, partitions)
            except IllegalStateError:
                return  # Revoked meanwhile: the next assignment calls again.
            except MustStop as problem:
                self._halt(problem)
                return
            except Exception as error:  # Whatever it is, nothing may be delivered until it is solved.
                expected = isinstance(error, DependencyUnavailable | KafkaError | OSError)
                logger.log(
                    logging.WARNING if expected else logging.ERROR,
                    "%s: cannot find where to resume, retrying in %.1f s: %s", self._name, pause, error,
                    exc_info=None if expected else error,
                )  # fmt: skip
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
            else:
                consumer.resume(*partitions)
                return

    async def _seek(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        stored = await self._resume(partitions)
        ahead = {partition: offset for partition in partitions if (offset := stored.get(partition))}
        starts = await consumer.beginning_offsets(list(stored)) if stored else {}
        if ahead:
            ends = await self._ends(list(ahead))
            for partition, offset in ahead.items():
                ahead[partition] = _checked_offset(partition, offset, starts[partition], ends[partition])
        for partition, offset in ahead.items():
            consumer.seek(partition, offset)
        if fresh := [partition for partition in partitions if partition in stored and partition not in ahead]:
            await consumer.seek_to_beginning(*fresh)
        if self._on_skipped is not None:
            for partition, start in starts.items():
                if start > (stored[partition] or 0):  # Perhaps no record follows for weeks.
                    await self._on_skipped(RecordPosition(partition.topic, partition.partition, start - 1))
        self._floors.update({**ahead, **dict.fromkeys(fresh, 0)})


def _checked_offset(partition: TopicPartition, offset: int, start: int, end: int) -> int:
    """Return where to resume in a log from `start` to `end` of which the store has read up to `offset`.

    Raises MustStop if the log ends before `offset`.
    """
    where = f"{partition.topic}/{partition.partition}"
    if offset > end:
        raise MustStop(
            f"the store has read {where} up to offset {offset}, but the broker's log ends at {end}: it lost records, "
            "or the topic was made anew. Continuing would take new records for old ones.",
            "If the broker's topics were lost for good: ratchet lake resume",
        )
    if offset < start:
        logger.critical(
            "%s: the broker deleted offsets %d to %d before the store had read them (retention): these records are "
            "lost. Was this service down for longer than the topic's retention?", where, offset, start - 1,
        )  # fmt: skip
    return max(offset, start)
