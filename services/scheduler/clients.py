"""Where Kafka's partitions end: the fence of a cycle."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from schemas.cycles import Fence, PartitionFence
from shared.errors import DependencyUnavailable
from shared.kafka.clients import end_offsets, open_consumer
from shared.settings import Settings

FENCED = ("predictions.logged.v1", "feedback.given.v1", "corrections.submitted.v1")
"""What a cycle's inputs are read from."""
_SECONDS = 20.0


class Offsets(Protocol):
    """What the scheduler asks of the broker."""

    async def fence(self) -> Fence: ...


class KafkaOffsets:
    """Asks the broker for end offsets, with a consumer that reads nothing."""

    def __init__(self, settings: Settings, topics: Sequence[str] = FENCED) -> None:
        self._settings = settings
        self._topics = tuple(topics)

    async def fence(self) -> Fence:
        """The end of every partition. Raises DependencyUnavailable when the broker does not say."""
        try:
            async with (
                asyncio.timeout(_SECONDS),
                open_consumer(self._settings, *self._topics, group_id=None) as consumer,
            ):
                places = sorted(consumer.assignment())  # Without a group, all partitions are assigned at once.
                ends = await end_offsets(self._settings, places)
        except TimeoutError as error:
            raise DependencyUnavailable(
                "Kafka does not say where its partitions end", "Check the broker: ratchet status"
            ) from error
        return tuple(
            PartitionFence(topic=place.topic, partition=place.partition, offset=ends[place]) for place in places
        )
