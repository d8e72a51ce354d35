"""Applies batches of `subjects.forgotten` to the lake and the kept media, and stores how far that topic was read.

The offset is stored in the table `forgotten` itself, after the deletions. So a lake that was deleted or restored from a
backup reads the requests again, whatever Kafka's consumer group says, and a crash in between repeats the deletions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from deltalake import CommitProperties, DeltaTable

from schemas.lake import FORGOTTEN
from schemas.predictions import SubjectForgotten
from services.prediction_log.erasure.erase import SubjectErasure, erase_subjects
from services.prediction_log.offsets.commit_offsets import CommitOffsets, last_offsets
from services.prediction_log.tables import STORE_ERRORS, create_table, open_table
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import Delivery, TopicPartition
from shared.storage.media import MediaStore


class ErasureRequests:
    """The erasure requests of the lake at `uri`. Every method blocks and raises DependencyUnavailable."""

    def __init__(self, uri: str, media: MediaStore, incarnation: str = "") -> None:
        self._uri = uri.rstrip("/")
        self._media = media
        self._offsets = CommitOffsets(incarnation)

    def apply(self, deliveries: Sequence[Delivery[SubjectForgotten]]) -> None:
        """Erase these people, then commit the offsets. Idempotent."""
        events = [delivery.event for delivery in deliveries]
        requests = [SubjectErasure(event.task, event.subject_hash, event.occurred_at) for event in events]
        erase_subjects(self._uri, requests)
        for task, people in _last_requests(requests).items():
            self._media.forget(task, people)
        offsets = last_offsets((delivery.topic, delivery.partition, delivery.offset) for delivery in deliveries)
        delta = self._table()
        try:
            delta.create_write_transaction(
                [], "append", delta.schema(), [],
                commit_properties=CommitProperties(app_transactions=self._offsets.transactions(offsets)),
            )  # fmt: skip
        except STORE_ERRORS as error:
            raise DependencyUnavailable(f"the offsets of the erasure requests were not committed: {error}") from error

    def stored_offsets(self, table: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return the last applied offset of each partition that the table has requests of."""
        delta = self._table()
        offsets = {partition: self._offsets.last_offset(delta, partition) for partition in partitions}
        return {partition: offset for partition, offset in offsets.items() if offset is not None}

    def accept_topic(self, table: str, topic: str, topic_id: UUID) -> bool:
        """Return False if the table was filled from a topic with another broker id; else commit this id from now on."""
        return self._offsets.accept_topic(self._table(), topic, topic_id)

    def _table(self) -> DeltaTable:
        return open_table(self._uri, FORGOTTEN) or create_table(self._uri, FORGOTTEN)


def _last_requests(requests: Iterable[SubjectErasure]) -> dict[str, dict[str, datetime]]:
    """By task and person, when they last asked."""
    found: dict[str, dict[str, datetime]] = {}
    for request in sorted(requests, key=lambda request: request.occurred_at):
        found.setdefault(request.task, {})[request.subject_hash] = request.occurred_at
    return found
