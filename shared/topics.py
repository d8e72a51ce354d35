"""Create the catalog's topics on a broker. Idempotent: existing topics are left as they are."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from schemas.catalog import DEAD_LETTER_RETENTION, DEAD_LETTERS, TOPICS
from shared.errors import DependencyUnavailable
from shared.settings import Settings


def create_topics(settings: Settings, wait_seconds: float = 30.0) -> list[str]:
    """Create what is missing; returns the names created. Raises DependencyUnavailable if no broker answers."""
    admin = _connect(settings, wait_seconds)
    try:
        existing = set(admin.list_topics())
        missing = [topic for topic in _wanted(settings) if topic.name not in existing]
        for topic in missing:
            with contextlib.suppress(TopicAlreadyExistsError):  # Another process was first.
                admin.create_topics([topic])
        return [topic.name for topic in missing]
    finally:
        admin.close()


def _connect(settings: Settings, wait_seconds: float) -> KafkaAdminClient:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return KafkaAdminClient(bootstrap_servers=settings.kafka.split(","), client_id="ratchet-topics")
        except (KafkaError, OSError) as error:
            if time.monotonic() > deadline:
                raise DependencyUnavailable(
                    f"no Kafka broker answers at {settings.kafka}: {error!r}", "Start one: ratchet up --only kafka"
                ) from error
            time.sleep(0.5)


def _wanted(settings: Settings) -> list[NewTopic]:
    replication = settings.kafka_replication
    topics = [
        NewTopic(
            topic.name,
            num_partitions=topic.partitions,
            replication_factor=replication,
            topic_configs={
                "retention.ms": _milliseconds(topic.retention),
                "cleanup.policy": "compact" if topic.compacted else "delete",
            },
        )
        for topic in TOPICS
    ]
    letters = {"retention.ms": _milliseconds(DEAD_LETTER_RETENTION)}
    return topics + [
        NewTopic(n, num_partitions=1, replication_factor=replication, topic_configs=letters) for n in DEAD_LETTERS
    ]


def _milliseconds(duration: timedelta) -> str:
    return str(int(duration / timedelta(milliseconds=1)))
