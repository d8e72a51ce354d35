"""Who asked to be forgotten, taken in: batches of `subjects.forgotten`, and how far that topic was read.

The position is kept in the table `forgotten` itself, and noted after the deletions. So a lake that was deleted, or
restored from a backup, reads again who is forgotten, whatever Kafka's consumer group says; and a crash in the middle
does the deletions again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from deltalake import CommitProperties, DeltaTable

from schemas.lake import FORGOTTEN
from schemas.predictions import SubjectForgotten
from services.prediction_log.erasure.erase import ErasureRequest, erase_subjects
from services.prediction_log.offsets.commit_offsets import CommitOffsets, last_offsets
from services.prediction_log.tables import STORE_ERRORS, create_table, open_table
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import Delivery, TopicPartition


class ErasureRequests:
    """Of the lake at `uri`. Every method blocks and raises DependencyUnavailable."""

    def __init__(self, uri: str, incarnation: str = "") -> None:
        self._uri = uri.rstrip("/")
        self._marks = CommitOffsets(incarnation)
        self._topic_ids: dict[str, UUID] = {}

    def take(self, deliveries: Sequence[Delivery[SubjectForgotten]]) -> None:
        """Forget these people. Again: changes nothing."""
        events = [one.event for one in deliveries]
        erase_subjects(self._uri, [ErasureRequest(one.task, one.subject_hash, one.occurred_at) for one in events])
        furthest = last_offsets((one.topic, one.partition, one.offset) for one in deliveries)
        delta = self._table()
        try:
            delta.create_write_transaction(
                [], "append", delta.schema(), [],
                commit_properties=CommitProperties(
                    app_transactions=self._marks.transactions(furthest, self._topic_ids)
                ),
            )  # fmt: skip
        except STORE_ERRORS as error:
            raise DependencyUnavailable(f"the lake did not note how far it forgot: {error}") from error

    def positions(self, table: str, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The last offset taken in of each partition that the table has any of."""
        delta = self._table()
        found = {place: self._marks.read(delta, place) for place in places}
        return {place: offset for place, offset in found.items() if offset is not None}

    def recognize(self, table: str, topic: str, topic_id: UUID) -> bool:
        """Whether this is the topic that the table was filled from, by the broker's id of it; noted from now on."""
        if self._marks.knows(self._table(), topic, topic_id) is False:
            return False
        self._topic_ids[topic] = topic_id
        return True

    def _table(self) -> DeltaTable:
        return open_table(self._uri, FORGOTTEN) or create_table(self._uri, FORGOTTEN)
