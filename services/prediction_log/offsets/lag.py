"""How the lake stands to the broker: what was read, what waits, and what would stop the writer. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import pyarrow as pa
from deltalake import DeltaTable

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
"""What a broker that knows no ids says, and what stands here for a topic that is missing."""


@dataclass(frozen=True)
class TopicLag:
    """A table and its topic. Counts are of rows and of records: a record that was left out has no row.

    `problem`: in words; empty: none. `stops`: the writer will not go on from there by itself.
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
    """What the broker says of a topic: its id, and where each partition starts and ends."""

    topic_id: UUID
    logs: Mapping[int, tuple[int, int]]


async def topic_lags(settings: Settings) -> list[TopicLag]:
    """Of every table that is filled from a topic. Raises DependencyUnavailable."""
    topics = await read_broker_topics(settings)
    marks = CommitOffsets(settings.kafka_incarnation)
    return [
        await asyncio.to_thread(_stand, settings.lake_uri, marks, table, topic, topics.get(topic))
        for table, topic in TOPICS.items()
    ]


async def read_broker_topics(settings: Settings) -> dict[str, BrokerTopic]:
    """Those that the broker has."""
    found = await describe_topics(settings, list(TOPICS.values()))
    places = [TopicPartition(name, number) for name, facts in found.items() for number in facts.partitions]
    if not places:
        return {}
    async with open_consumer(settings, group_id=None) as consumer:
        starts = await consumer.beginning_offsets(places)
    ends = await end_offsets(settings, places)
    return {
        name: BrokerTopic(UUID(facts.topic_id), {p.partition: (starts[p], ends[p]) for p in places if p.topic == name})
        for name, facts in found.items()
    }


def _stand(uri: str, marks: CommitOffsets, table: str, topic: str, there: BrokerTopic | None) -> TopicLag:
    delta = open_table(uri, table)
    if delta is None:
        waiting = sum(end - start for start, end in there.logs.values()) if there else 0
        return TopicLag(table, topic, 0, 0, waiting, problem="" if there else "the broker has no such topic yet")
    rows = _rows(delta)
    if there is None:
        filled = marks.knows(delta, topic, _NO_ID) is not None
        return TopicLag(table, topic, rows, 0, 0, "the broker has no such topic", stops=filled)
    if there.topic_id != _NO_ID and marks.knows(delta, topic, there.topic_id) is False:
        waiting = sum(end - start for start, end in there.logs.values())
        return TopicLag(table, topic, rows, 0, waiting, "the topic was made anew", stops=True)
    stored = {number: marks.read(delta, TopicPartition(topic, number)) for number in there.logs}
    nexts = {number: 0 if last is None else last + 1 for number, last in stored.items()}
    problem, stops = _problem(nexts, there.logs)
    waiting = sum(max(0, end - max(start, nexts[number])) for number, (start, end) in there.logs.items())
    return TopicLag(table, topic, rows, sum(nexts.values()), waiting, problem, stops)


def _problem(nexts: Mapping[int, int], logs: Mapping[int, tuple[int, int]]) -> tuple[str, bool]:
    ahead = [f"{number} (read to {nexts[number]}, ends at {end})" for number, (_, end) in logs.items()
             if nexts[number] > end]  # fmt: skip
    if ahead:
        return f"the broker's log is shorter than what was read of it: partition {', '.join(ahead)}", True
    gone = sum(max(0, start - nexts[number]) for number, (start, _) in logs.items() if nexts[number])
    return (f"the broker deleted {gone} records before they were read (retention)" if gone else ""), False


def _rows(delta: DeltaTable) -> int:
    counts = pa.table(delta.get_add_actions(flatten=True))["num_records"].to_pylist()
    return sum(count or 0 for count in counts)
