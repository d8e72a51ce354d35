"""Lets a test that starts a whole service skip the events that other tests left on the shared broker."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.catalog import topics_consumed_by
from shared.settings import Settings


async def skip_backlog(settings: Settings, *services: str) -> None:
    """Move the services' consumer groups to the end of their topics. The services must not be running."""
    for service in services:
        for topic in topics_consumed_by(service):
            consumer = AIOKafkaConsumer(
                bootstrap_servers=settings.kafka,
                group_id=f"ratchet.{service}.{topic.name}",
                enable_auto_commit=False,
            )
            await consumer.start()
            try:
                partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
                consumer.assign(partitions)
                await consumer.commit(await consumer.end_offsets(partitions))
            finally:
                await consumer.stop()
