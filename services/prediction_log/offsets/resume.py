"""Where to go on reading: the lake says it, not Kafka's consumer group, and only on the topics that filled the lake.

A lake that was deleted is filled again from the start of the topics, and one that was restored from where it stands.
A topic that was made anew starts its offsets from 0: taking them for those that were stored would throw new records
away as old ones. So the broker's id of each topic is kept in the lake; another id stops the writer. (A log that is
shorter than what was stored stops it too: shared/kafka/resuming.py.)
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
"""Names of topics → the id that the broker gave each; a topic or an id that it does not know is left out."""


class OffsetStore(Protocol):
    """What knows how far it was filled. Every method blocks and raises DependencyUnavailable."""

    def positions(self, table: str, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]: ...
    def recognize(self, table: str, topic: str, topic_id: UUID) -> bool: ...


def resume_from(lake: OffsetStore, table: str, topic_ids: ReadTopicIds) -> Resume:
    """What a consumer asks when partitions are assigned to it: the next offset of each for this table."""

    async def resume(places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        topics = sorted({topic for topic, _ in places})
        for topic, topic_id in (await topic_ids(topics)).items():
            await _recognize(lake, table, topic, UUID(topic_id))
        stored = await asyncio.to_thread(lake.positions, table, places)
        return {place: stored.get(place, -1) + 1 for place in places}

    return resume


async def _recognize(lake: OffsetStore, table: str, topic: str, topic_id: UUID) -> None:
    if topic_id.int == 0:  # A broker that knows no ids says so by this one.
        return
    if not await asyncio.to_thread(lake.recognize, table, topic, topic_id):
        raise MustStop(
            f"the topic {topic} is not the one that the lake's {table} was filled from: it was made anew (the broker's "
            f"id of it is {topic_id} now), so its offsets mean other records. Nothing was read from it, and nothing "
            "of the lake was changed.",
            "If the old topic is gone for good, read the new one from its start, keeping the lake: ratchet lake go-on",
        )
