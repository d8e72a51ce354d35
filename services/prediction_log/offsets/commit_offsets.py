"""What a commit says, in the Delta log, of where its rows came from: how far each partition was read, of which topic.

These are Delta's app transactions, a name and a number each. Offsets of another incarnation of the broker (an operator
names a new one when its topics were lost) have other names: they are another log's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

from deltalake import DeltaTable, Transaction

from shared.kafka.delivery import TopicPartition

_LARGEST = 2**63 - 1
"""An app transaction carries 63 bits."""


class CommitOffsets:
    """Of one incarnation of the broker."""

    def __init__(self, incarnation: str) -> None:
        self._prefix = f"{incarnation}:" if incarnation else ""
        self._incarnation = incarnation

    def read(self, delta: DeltaTable, place: TopicPartition) -> int | None:
        """The last offset that the table has of a partition."""
        version: int | None = delta.transaction_version(self._place(place))
        return version

    def knows(self, delta: DeltaTable, topic: str, topic_id: UUID) -> bool | None:
        """Whether the table was filled from this topic, by the broker's id of it; None: nothing is noted."""
        noted = delta.transaction_version(self._topic(topic))
        return None if noted is None else bool(noted == _number(topic_id))

    def transactions(self, furthest: Mapping[TopicPartition, int], topic_ids: Mapping[str, UUID]) -> list[Transaction]:
        """To commit with the rows: the last offset of each partition, and the ids of their topics."""
        places = [Transaction(self._place(place), offset) for place, offset in sorted(furthest.items())]
        topics = sorted({topic for topic, _ in furthest} & topic_ids.keys())
        return [*places, *(Transaction(self._topic(topic), _number(topic_ids[topic])) for topic in topics)]

    def _place(self, place: TopicPartition) -> str:
        topic, partition = place
        return f"{self._prefix}{topic}/{partition}"

    def _topic(self, topic: str) -> str:
        return f"{self._incarnation}:{topic}:id"


def last_offsets(places: Iterable[tuple[str, int, int]]) -> dict[TopicPartition, int]:
    """The last offset of each partition among (topic, partition, offset)."""
    furthest: dict[tuple[str, int], int] = {}
    for topic, partition, offset in places:
        furthest[topic, partition] = max(offset, furthest.get((topic, partition), offset))
    return {TopicPartition(*partition): offset for partition, offset in furthest.items()}


def _number(topic_id: UUID) -> int:
    return int(topic_id) & _LARGEST
