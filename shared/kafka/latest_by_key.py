"""A compacted topic as a table in memory: its last value per key."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from schemas.base import Event
from shared.errors import DependencyUnavailable
from shared.kafka.clients import describe_topics, end_offsets, has_records
from shared.kafka.delivery import TopicPartition
from shared.settings import Settings

E = TypeVar("E", bound=Event)
READ_SECONDS = 30.0
"""In so long a running process has read a compacted topic from its start, as a rule."""
logger = logging.getLogger(__name__)


class LatestByKey(Generic[E]):
    """The last value per key, filled by `Consumers.table`. Only `latest` and the `read…`, `until…` and `wait…` wait."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._values: dict[str, E] = {}
        self._remembered: dict[str, E] = {}
        """Values of `remember` that the topic has not reached yet, and in `_older` its last ones before them."""
        self._older: dict[str, E] = {}
        self._offsets: dict[int, int] = {}
        self._changed = asyncio.Condition()
        self._started = time.monotonic()
        self._read = asyncio.Event()

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[E]:
        return iter(list(self._values.values()))

    async def put(self, key: str, value: E) -> None:
        async with self._changed:
            remembered = self._remembered.get(key)
            if remembered is not None and value.occurred_at < remembered.occurred_at:
                self._older[key] = value
                return
            self._values[key] = value
            self._remembered.pop(key, None)
            self._older.pop(key, None)
            self._changed.notify_all()

    async def remember(self, key: str, value: E) -> None:
        """Put a value that an earlier process had read last: the topic, read from its start, has older ones before it.

        They do not take its place until the topic is read to its end, and is found to have none as new.
        """
        async with self._changed:
            self._values[key] = self._remembered[key] = value
            self._changed.notify_all()

    async def advance(self, partition: int, offset: int) -> None:
        """Note that the records of a partition below `offset` are read, whether they could be used or not."""
        async with self._changed:
            self._offsets[partition] = offset
            self._changed.notify_all()

    async def wait_until_read(self, ends: Mapping[TopicPartition, int]) -> None:
        """Return when the topic is read to these end offsets."""
        behind = {end.partition: offset for end, offset in ends.items() if offset > 0}
        async with self._changed:
            await self._changed.wait_for(
                lambda: all(self._offsets.get(partition, 0) >= offset for partition, offset in behind.items())
            )

    async def read_to_end(self, settings: Settings) -> None:
        """Background, started when the broker answers: wait until the topic is read to the end that it has now.

        The last offset may have no record (compacted, or never stored by tansu). So after a while the broker is asked
        whether any is left: how long it took says nothing of what the consumer has read.
        """
        described = await describe_topics(settings, [self.topic])
        if self.topic not in described:
            raise DependencyUnavailable(
                f"there is no topic {self.topic} yet", "See which are missing: ratchet topics list"
            )
        partitions = [TopicPartition(self.topic, number) for number in described[self.topic].partitions]
        ends = await end_offsets(settings, partitions)
        while (ends := await self._left_of(ends)) and (unread := await self._with_records(settings, ends)):
            logger.warning("not read to its end yet: %s", unread)
        await self._note_read()

    async def read_to(self, ends: Mapping[TopicPartition, int]) -> None:
        """Wait until the topic is read to these end offsets; from then on `latest` and `until_read` answer."""
        await self.wait_until_read(ends)
        await self._note_read()

    async def _note_read(self) -> None:
        """The topic decides now, also where it lost what was remembered of it, or a clock was wrong."""
        async with self._changed:
            self._values |= self._older
            self._remembered.clear()
            self._older.clear()
            self._read.set()
            self._changed.notify_all()

    async def _left_of(self, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Wait for these end offsets. Returns those that do not come in READ_SECONDS."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_SECONDS):
                await self.wait_until_read(ends)
        return {partition: end for partition, end in ends.items() if self._offsets.get(partition.partition, 0) < end}

    async def _with_records(self, settings: Settings, ends: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Return those of the partitions that have a record behind what is read of them."""
        read = {partition: self._offsets.get(partition.partition, 0) for partition in ends}
        return [partition for partition, start in read.items() if await has_records(settings, partition, start)]

    @property
    def is_read(self) -> bool:
        """False until the topic is read to its end (see `read_to_end`): each value may have newer ones behind it."""
        return self._read.is_set()

    async def latest(self, key: str, seconds: float | None = None) -> E | None:
        """Return the last value, None if there is none. Waits until the topic is read to its end: see `read_to_end`.

        A value that is read before has newer ones behind it. Raises DependencyUnavailable after so many seconds.
        """
        await self.until_read(seconds)
        return self.get(key)

    async def until_read(self, seconds: float | None = None) -> None:
        """Return when the topic is read to its end: see `read_to_end`. Before, it may have keys that are not here.

        Raises DependencyUnavailable after so many seconds.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._read.wait()
        except TimeoutError as error:
            raise DependencyUnavailable(
                f"{self.topic} is not read to its end yet", "Is Kafka there? ratchet status"
            ) from error

    @property
    def is_starting(self) -> bool:
        """The topic is not read to its end yet, and had no time for that either."""
        return not self._read.is_set() and time.monotonic() - self._started < READ_SECONDS

    def get(self, key: str) -> E | None:
        return self._values.get(key)

    def is_missing(self, key: str) -> bool:
        """Return True if the topic is read to its end and has no value for the key: it may never come."""
        return self.is_read and key not in self._values

    async def wait_for(self, key: str, seconds: float = 5.0) -> E:
        """Return the value, waiting for the topic to be read. Raises DependencyUnavailable if it does not come."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: key in self._values)
        except TimeoutError as error:
            raise DependencyUnavailable(
                f"{self.topic} has no value for {key!r}", "Is the task applied? Try: ratchet tasks list"
            ) from error
        return self._values[key]

    async def wait_until(self, key: str, condition: Callable[[E], bool], seconds: float = 2.0) -> E:
        """Return the value once `condition(value)` is true, or the latest after `seconds`: another topic may be ahead.

        Raises DependencyUnavailable as `wait_for` does.
        """
        await self.wait_for(key)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: condition(self._values[key]))
        return self._values[key]
