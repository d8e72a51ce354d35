"""Where a consumer whose store knows its offsets resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import pytest

from shared.errors import MustStop
from shared.kafka.delivery import RecordPosition, TopicPartition
from shared.kafka.resuming import ResumingListener, resume_where_stored
from tests.waiting import until

PARTITION = TopicPartition("feedback.given.v1", 0)


class Log:
    """A partition of which the broker has the records from `start` up to `end`, and its consumer."""

    def __init__(self, start: int, end: int) -> None:
        self._start, self._end = start, end
        self.sought: int | None = None
        self.is_paused = False

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, self._end)

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, self._start)

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        self.sought = self._start

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought = offset

    def pause(self, *partitions: TopicPartition) -> None:
        self.is_paused = True

    def resume(self, *partitions: TopicPartition) -> None:
        self.is_paused = False


@pytest.mark.parametrize(
    ("stored", "start", "sought", "skipped"),
    [
        ({}, 0, 0, []),
        ({}, 7, 7, [6]),
        ({PARTITION: 3}, 0, 3, []),
        ({PARTITION: 3}, 7, 7, [6]),
        ({PARTITION: 7}, 7, 7, []),
    ],
)
async def test_a_store_moves_past_what_the_broker_deleted_before_it_was_read(
    stored: dict[TopicPartition, int], start: int, sought: int, skipped: list[int]
) -> None:
    """A cycle's fence may lie there: it waited for a record that nothing brings, where none came later."""
    log, moved = Log(start, 7), list[RecordPosition]()

    async def offsets(partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return stored

    async def on_skipped(position: RecordPosition) -> None:
        moved.append(position)

    def halt(problem: MustStop) -> None:
        raise problem

    listener = ResumingListener("a service", resume_where_stored(offsets, log.ends), log.ends, halt, on_skipped)
    listener.subscriber = SimpleNamespace(consumer=log)
    await listener.on_partitions_assigned([PARTITION])
    assert log.is_paused
    await until(lambda: not log.is_paused)
    assert (log.sought, [position.offset for position in moved]) == (sought, skipped)
