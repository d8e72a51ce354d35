"""Where a store is the authority on how far its topics were read: its consumer starts from there, not from the group.

A group's committed offsets lag behind the store, and know nothing of a store that was deleted or restored. So on each
assignment the store is asked, the consumer is moved, and only then are records delivered. What the broker no longer
has is noticed here: a log shorter than what the store has read is not the log that it read.
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
from shared.kafka.delivery import TopicPartition

Resume = Callable[[Sequence[TopicPartition]], Awaitable[Mapping[TopicPartition, int | None]]]
"""The partitions just assigned → the next offset to read of each one the store speaks for; 0 or None: from the start of
the log. What is left out starts where the group was. May raise MustStop; other failures are tried again."""

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
logger = logging.getLogger(__name__)


class ResumingListener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Holds new partitions still until the store was asked and the consumer stands where it says.

    This happens in a task of its own: the group must not wait for a slow store, or it would take this member for dead.
    """

    def __init__(
        self,
        name: str,
        resume: Resume,
        ends: Callable[[Sequence[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]],
        halt: Callable[[MustStop], None],
    ) -> None:
        self._name = name
        self._resume = resume
        self._ends = ends
        self._halt = halt
        self._subscriber: Any = None
        self._placing: asyncio.Task[None] | None = None
        self._floors: dict[TopicPartition, int] = {}
        """Below these nothing can come, unless the log was cut or made anew under us."""

    def attach(self, subscriber: Any) -> None:
        """The FastStream subscriber whose consumer is moved; it makes that consumer when it starts."""
        self._subscriber = subscriber

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._forget()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._forget()
        self._place(list(assigned))

    def handled(self, last: Mapping[TopicPartition, int]) -> None:
        """These offsets, and all before them, were handled since the partitions were assigned."""
        for partition, offset in last.items():
            if partition in self._floors:
                self._floors[partition] = max(self._floors[partition], offset + 1)

    def expects(self, first: Mapping[TopicPartition, int]) -> bool:
        """Whether records from these offsets on can be handled; if not, the store is asked again where it stands."""
        strange = [place for place, offset in first.items() if offset < self._floors.get(place, 0)]
        if strange:
            logger.error("%s: %s starts again below what was read of it", self._name, strange)
            self._forget()
            self._place([TopicPartition(*place) for place in first])
        return not strange

    def _forget(self) -> None:
        self._floors.clear()
        if self._placing is not None:
            self._placing.cancel()
            self._placing = None

    def _place(self, places: Sequence[TopicPartition]) -> None:
        if places:
            consumer = self._subscriber.consumer
            with contextlib.suppress(IllegalStateError):  # No longer ours: the next assignment has a call of its own.
                consumer.pause(*places)  # Before the first fetch: that needs positions, which are asked for after this.
            self._placing = asyncio.create_task(self._patiently(consumer, places))

    async def _patiently(self, consumer: AIOKafkaConsumer, places: Sequence[TopicPartition]) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._move(consumer, places)
            except IllegalStateError:
                return  # No longer ours: the next assignment comes with a call of its own.
            except MustStop as problem:
                self._halt(problem)
                return
            except Exception as error:  # Whatever it is, nothing may be delivered before it is cured.
                foreseen = isinstance(error, DependencyUnavailable | KafkaError | OSError)
                logger.log(
                    logging.WARNING if foreseen else logging.ERROR,
                    "%s: cannot tell where to go on, again in %.1f s: %s", self._name, pause, error,
                    exc_info=None if foreseen else error,
                )  # fmt: skip
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            else:
                consumer.resume(*places)
                return

    async def _move(self, consumer: AIOKafkaConsumer, places: Sequence[TopicPartition]) -> None:
        stands = await self._resume([(place.topic, place.partition) for place in places])
        known = {place: stands[(place.topic, place.partition)] for place in places if tuple(place) in stands}
        ahead = {place: offset for place, offset in known.items() if offset}
        if ahead:
            starts = await consumer.beginning_offsets(list(ahead))
            ends = await self._ends(list(ahead))
            for place, offset in ahead.items():
                ahead[place] = _possible(place, offset, starts[place], ends[place])
        for place, offset in ahead.items():
            consumer.seek(place, offset)
        if fresh := [place for place in known if place not in ahead]:
            await consumer.seek_to_beginning(*fresh)
        self._floors.update({(place.topic, place.partition): offset for place, offset in ahead.items()})
        self._floors.update({(place.topic, place.partition): 0 for place in fresh})


def _possible(place: TopicPartition, offset: int, start: int, end: int) -> int:
    """Where to go on in a log from `start` to `end` of which the store has read up to `offset`."""
    where = f"{place.topic}/{place.partition}"
    if offset > end:
        raise MustStop(
            f"the store has read {where} up to offset {offset}, but the broker's log ends at {end}: it lost records, "
            "or the topic was made anew. Going on would take new records for old ones.",
            "If the broker's topics were lost for good: ratchet lake go-on",
        )
    if offset < start:
        logger.critical(
            "%s: the broker deleted offsets %d to %d before the store had read them (retention): these records are "
            "lost. Was this service down for longer than the topic is kept?", where, offset, start - 1,
        )  # fmt: skip
    return max(offset, start)
