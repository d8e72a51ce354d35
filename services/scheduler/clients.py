"""Where Kafka's partitions end: the fence of a cycle."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from schemas.cycles import Fence, PartitionFence
from shared.errors import DependencyUnavailable

FENCED = ("predictions.logged.v1", "feedback.given.v1", "corrections.submitted.v1")
"""What a cycle's inputs are read from."""
_SECONDS = 10.0


class Offsets(Protocol):
    """What the scheduler asks of the broker."""

    async def fence(self) -> Fence: ...


class KafkaOffsets:
    """Asks the broker for end offsets, with a consumer that reads nothing.

    Exact on Apache Kafka; tansu's are up to a batch too low, which leaves those records to the next cycle.
    """

    def __init__(self, servers: str, topics: Sequence[str] = FENCED) -> None:
        self._servers = [server.strip() for server in servers.split(",")]
        self._topics = tuple(topics)

    async def fence(self) -> Fence:
        """The end of every partition. Raises DependencyUnavailable when the broker does not say."""
        consumer = AIOKafkaConsumer(
            *self._topics, bootstrap_servers=self._servers, client_id="ratchet-scheduler-fence", group_id=None
        )
        try:
            async with asyncio.timeout(_SECONDS):
                await consumer.start()  # Without a group, all partitions are assigned at once.
                partitions = sorted(consumer.assignment())
                ends = await consumer.end_offsets(partitions)
        except (KafkaError, OSError, TimeoutError) as error:
            raise DependencyUnavailable(
                f"Kafka does not say where its partitions end: {error!r}", "Check the broker: ratchet status"
            ) from error
        finally:
            await consumer.stop()
        return tuple(
            PartitionFence(topic=place.topic, partition=place.partition, offset=ends[place]) for place in partitions
        )
