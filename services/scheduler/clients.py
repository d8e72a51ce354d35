"""Reads a cycle's fence from Kafka: the end offset of every input partition."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from schemas.cycles import Fence, PartitionFence
from shared.errors import DependencyUnavailable
from shared.kafka.clients import end_offsets, open_consumer
from shared.settings import Settings

FENCED_TOPICS = ("predictions.logged.v1", "feedback.given.v1", "corrections.submitted.v1", "subjects.forgotten.v1")
"""The topics that a cycle's inputs are read from, and the erasures that apply to them."""
_TIMEOUT_SECONDS = 20.0


class FenceReader(Protocol):
    """What the scheduler needs of the broker."""

    async def fence(self) -> Fence: ...


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
