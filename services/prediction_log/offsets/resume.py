"""Decides where to resume reading: the lake has the offsets, not Kafka's consumer group.

A deleted lake is filled again from the start of the topics, a restored one from its own offsets. A recreated topic
starts its offsets from 0: read as the stored ones, they would discard new records as old ones. So the lake stores the
broker's id of each topic, and another id stops the writer. (So does a log that is shorter than what was stored:
shared/kafka/resuming.py.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from shared.errors import MustStop
from shared.kafka.delivery import TopicPartition
from shared.kafka.resuming import Resume

ReadTopicIds = Callable[[Sequence[str]], Awaitable[Mapping[str, str]]]
"""Topic names → the broker's id of each; topics and ids that the broker does not know are absent."""


class LakeOffsets(Protocol):
    """A store that commits the offsets it was filled to. Every method blocks, and raises DependencyUnavailable while
    the lake is unavailable."""

    def stored_offsets(self, table: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]: ...
    def accept_topic(self, table: str, topic: str, topic_id: UUID) -> bool: ...


def resume_from(store: LakeOffsets, table: str, read_topic_ids: ReadTopicIds) -> Resume:
    """Return what a consumer calls when partitions are assigned to it: the next offset of each for this table."""

    async def resume(partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        topics = sorted({topic for topic, _ in partitions})
        for topic, topic_id in (await read_topic_ids(topics)).items():
            await _check_topic(store, table, topic, UUID(topic_id))
        stored = await asyncio.to_thread(store.stored_offsets, table, partitions)
        return {partition: stored.get(partition, -1) + 1 for partition in partitions}

    return resume


async def _check_topic(store: LakeOffsets, table: str, topic: str, topic_id: UUID) -> None:
    if topic_id.int == 0:  # The id that a broker without topic ids reports.
        return
    if not await asyncio.to_thread(store.accept_topic, table, topic, topic_id):
        raise MustStop(
            f"the topic {topic} was recreated: the lake's {table} was filled from a topic with another id (the "
            f"broker's id is {topic_id} now), so its offsets mean other records. Nothing was read from it, and nothing "
            "of the lake was changed.",
            "If the old topic is gone for good, read the new one from its start, keeping the lake: ratchet lake resume",
        )
