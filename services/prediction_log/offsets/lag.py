"""Compares the lake with the broker: records read, records waiting, and problems that stop the writer. Read-only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import pyarrow as pa

from schemas.catalog import topic_of
from schemas.lake import FEEDBACK, FORGOTTEN, PREDICTIONS, REQUESTS
from schemas.predictions import FeedbackGiven, PredictionLogged, RequestObserved, SubjectForgotten
from services.prediction_log.offsets.commit_offsets import CommitOffsets
from services.prediction_log.tables import open_table
from shared.kafka.clients import describe_topics, end_offsets, open_consumer
from shared.kafka.delivery import TopicPartition
from shared.settings import Settings

TOPICS = {
    PREDICTIONS: topic_of(PredictionLogged).name,
    FEEDBACK: topic_of(FeedbackGiven).name,
    REQUESTS: topic_of(RequestObserved).name,
    FORGOTTEN: topic_of(SubjectForgotten).name,
}
_NO_ID = UUID(int=0)
"""The id that a broker without topic ids reports; used here for a missing topic too."""


@dataclass(frozen=True)
class TopicLag:
    """How far a table has read its topic. Counts are of rows and of records: a skipped record has no row.

    `problem` is empty if there is none. `stops`: the writer does not continue without an operator.
    """

    table: str
    topic: str
    rows: int
    read: int
    waiting: int
    problem: str = ""
    stops: bool = False


@dataclass(frozen=True)
class BrokerTopic:
    """A topic as the broker reports it: its id, and the start and end offset of each partition."""

    topic_id: UUID
    logs: Mapping[int, tuple[int, int]]


async def topic_lags(settings: Settings) -> list[TopicLag]:
    """Return the lag of every table that is filled from a topic. Raises DependencyUnavailable."""
    topics = await read_broker_topics(settings)
    offsets = CommitOffsets(settings.kafka_incarnation)
    return [
        await asyncio.to_thread(_lag_of, settings.lake_uri, offsets, table, topic, topics.get(topic))
        for table, topic in TOPICS.items()
    ]


async def read_broker_topics(settings: Settings) -> dict[str, BrokerTopic]:
    """Return those of `TOPICS` that the broker has, by name."""
    found = await describe_topics(settings, list(TOPICS.values()))
    partitions = [TopicPartition(name, number) for name, topic in found.items() for number in topic.partitions]
    if not partitions:
        return {}
    async with open_consumer(settings, group_id=None) as consumer:
        starts = await consumer.beginning_offsets(partitions)
    ends = await end_offsets(settings, partitions)
    return {
        name: BrokerTopic(
            UUID(topic.topic_id), {p.partition: (starts[p], ends[p]) for p in partitions if p.topic == name}
        )
        for name, topic in found.items()
    }


def _lag_of(uri: str, offsets: CommitOffsets, table: str, topic: str, broker: BrokerTopic | None) -> TopicLag:
    delta = open_table(uri, table)
    waiting = sum(end - start for start, end in broker.logs.values()) if broker else 0
    if delta is None:
        return TopicLag(table, topic, 0, 0, waiting, problem="" if broker else "the broker has no such topic yet")
    rows = sum(count or 0 for count in pa.table(delta.get_add_actions(flatten=True))["num_records"].to_pylist())
    if broker is None:
        is_filled = offsets.is_filled_from(delta, topic, _NO_ID) is not None
        return TopicLag(table, topic, rows, 0, 0, "the broker has no such topic", stops=is_filled)
    if broker.topic_id != _NO_ID and offsets.is_filled_from(delta, topic, broker.topic_id) is False:
        return TopicLag(table, topic, rows, 0, waiting, "the topic was recreated", stops=True)
    stored = {number: offsets.last_offset(delta, TopicPartition(topic, number)) for number in broker.logs}
    next_offsets = {number: 0 if last is None else last + 1 for number, last in stored.items()}
    problem, stops = _problem(next_offsets, broker.logs)
    waiting = sum(max(0, end - max(start, next_offsets[number])) for number, (start, end) in broker.logs.items())
    return TopicLag(table, topic, rows, sum(next_offsets.values()), waiting, problem, stops)


def _problem(next_offsets: Mapping[int, int], logs: Mapping[int, tuple[int, int]]) -> tuple[str, bool]:
    ahead = [f"{number} (read to {next_offsets[number]}, ends at {end})" for number, (_, end) in logs.items()
             if next_offsets[number] > end]  # fmt: skip
    if ahead:
        return f"the broker's log is shorter than what was read of it: partition {', '.join(ahead)}", True
    lost = sum(max(0, start - next_offsets[number]) for number, (start, _) in logs.items() if next_offsets[number])
    return (f"the broker deleted {lost} records before they were read (retention)" if lost else ""), False
