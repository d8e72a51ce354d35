"""Kafka offsets in the commits of a Delta table: how far each partition was read, and of which topic.

They are Delta app transactions: a name and a number each. Positions belong to one broker incarnation; another
incarnation (an operator names a new one when the broker lost its topics) invalidates them, because its app
transactions have other names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

from deltalake import DeltaTable, Transaction

from shared.kafka.delivery import TopicPartition

_MAX_VERSION = 2**63 - 1
"""An app transaction carries 63 bits."""


class CommitOffsets:
    """Reads and writes the app transactions that belong to one broker incarnation."""

    def __init__(self, incarnation: str) -> None:
        self._prefix = f"{incarnation}:" if incarnation else ""
        self._incarnation = incarnation
        self._topic_ids: dict[str, UUID] = {}

    def last_offset(self, delta: DeltaTable, partition: TopicPartition) -> int | None:
        """Return the last offset of a partition that the table has, or None."""
        version: int | None = delta.transaction_version(self._partition_name(partition))
        return version

    def is_filled_from(self, delta: DeltaTable, topic: str, topic_id: UUID) -> bool | None:
        """Return True if the table was filled from the topic with this broker id, None if it has no topic id yet."""
        stored = delta.transaction_version(self._topic_name(topic))
        return None if stored is None else bool(stored == _version_of(topic_id))

    def accept_topic(self, delta: DeltaTable, topic: str, topic_id: UUID) -> bool:
        """Return False if the table was filled from a topic with another broker id; else commit this id from now on."""
        if self.is_filled_from(delta, topic, topic_id) is False:
            return False
        self._topic_ids[topic] = topic_id
        return True

    def transactions(self, offsets: Mapping[TopicPartition, int]) -> list[Transaction]:
        """Return what to commit with rows: the last offset of each partition, and the accepted ids of their topics."""
        last = [Transaction(self._partition_name(partition), offset) for partition, offset in sorted(offsets.items())]
        topics = sorted({topic for topic, _ in offsets} & self._topic_ids.keys())
        return [*last, *(Transaction(self._topic_name(name), _version_of(self._topic_ids[name])) for name in topics)]

    def _partition_name(self, partition: TopicPartition) -> str:
        topic, number = partition
        return f"{self._prefix}{topic}/{number}"

    def _topic_name(self, topic: str) -> str:
        return f"{self._incarnation}:{topic}:id"


def last_offsets(positions: Iterable[tuple[str, int, int]]) -> dict[TopicPartition, int]:
    """Return the last offset of each partition among (topic, partition, offset)."""
    last: dict[TopicPartition, int] = {}
    for topic, number, offset in positions:
        partition = TopicPartition(topic, number)
        last[partition] = max(offset, last.get(partition, offset))
    return last


def _version_of(topic_id: UUID) -> int:
    return int(topic_id) & _MAX_VERSION
