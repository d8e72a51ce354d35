"""Reads from Kafka: a cycle's fence, which is the end of every input partition, and the cycles that were announced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiokafka import ConsumerRecord

from schemas.catalog import topic_of
from schemas.cycles import CycleFinished, CycleStarted, Fence, PartitionFence
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.clients import describe_topics, end_offsets, has_records, open_consumer
from shared.kafka.delivery import RecordPosition, TopicPartition, decode_event
from shared.kafka.resuming import ReadOffsets
from shared.settings import Settings

FENCED_TOPICS = ("predictions.logged.v1", "feedback.given.v1", "corrections.submitted.v1", "subjects.forgotten.v1")
"""The topics that a cycle's inputs are read from, and the erasures that apply to them."""
_TIMEOUT_SECONDS = 20.0
_ANNOUNCEMENTS: dict[str, type[CycleStarted | CycleFinished]] = {
    topic_of(event).name: event for event in (CycleStarted, CycleFinished)
}
logger = logging.getLogger(__name__)


class KafkaFenceReader:
    """Asks the broker for end offsets, with a consumer that reads nothing."""

    def __init__(self, settings: Settings, topics: Sequence[str] = FENCED_TOPICS) -> None:
        self._settings = settings
        self._topics = tuple(topics)

    async def fence(self) -> Fence:
        """Return the end of every partition. Raises DependencyUnavailable when the broker does not answer."""
        try:
            async with (
                asyncio.timeout(_TIMEOUT_SECONDS),
                open_consumer(self._settings, *self._topics, group_id=None) as consumer,
            ):
                partitions = sorted(consumer.assignment())  # Without a group, all partitions are assigned at once.
                ends = await end_offsets(self._settings, partitions)
        except TimeoutError as error:
            raise DependencyUnavailable(
                "Kafka did not return its end offsets in time", "Check the broker: ratchet status"
            ) from error
        return tuple(PartitionFence(topic=p.topic, partition=p.partition, offset=ends[p]) for p in partitions)


@dataclass(frozen=True)
class Announced:
    """Starts of cycles, and ends of cycles by their id, in the order of their topic, and which records were read."""

    started: tuple[CycleStarted, ...]
    finished: dict[str, CycleFinished]
    read: tuple[RecordPosition, ...]


class KafkaAnnouncements:
    """Reads what the scheduler itself announced."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def since(self, next_offsets: ReadOffsets) -> Announced:
        """Return what was announced from these offsets on. Raises DependencyUnavailable, or KafkaError.

        A topic that ends before its offset was made anew, and is read from its start.
        """
        described = await describe_topics(self._settings, list(_ANNOUNCEMENTS))
        partitions = [TopicPartition(name, number) for name, topic in described.items() for number in topic.partitions]
        known, ends = await next_offsets(partitions), await end_offsets(self._settings, partitions)
        starts = {each: start if (start := known.get(each, 0)) <= ends[each] else 0 for each in partitions}
        records = await self._records({each: start for each, start in starts.items() if start < ends[each]}, ends)
        events = [event for record in records if (event := _announcement(record)) is not None]
        return Announced(
            started=tuple(event for event in events if isinstance(event, CycleStarted)),
            finished={str(event.cycle_id): event for event in events if isinstance(event, CycleFinished)},
            read=tuple(RecordPosition(record.topic, record.partition, record.offset) for record in records),
        )

    async def _records(
        self, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
    ) -> list[ConsumerRecord]:
        if not starts:
            return []
        found: list[ConsumerRecord] = []
        options = {"group_id": None, "auto_offset_reset": "earliest"}
        async with open_consumer(self._settings, **options) as consumer:
            consumer.assign(list(starts))
            for partition, start in starts.items():
                consumer.seek(partition, start)
            for partition in starts:
                while (position := await consumer.position(partition)) < ends[partition]:
                    records = (await consumer.getmany(partition, timeout_ms=1_000)).get(partition, [])
                    if not records and not await has_records(self._settings, partition, position):
                        break  # Up to its end there may be offsets without records.
                    found += records
        return found


def _announcement(record: ConsumerRecord) -> CycleStarted | CycleFinished | None:
    try:
        return decode_event(_ANNOUNCEMENTS[record.topic], record.value or b"")
    except InvalidMessage as error:
        logger.warning("%s/%s is ignored: %s", record.topic, record.offset, error)
        return None
