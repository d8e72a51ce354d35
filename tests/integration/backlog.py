"""Other tests' events lie on the same broker. A test that starts a whole service passes them over first."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.catalog import topics_consumed_by
from shared.settings import Settings


async def pass_over_backlog(settings: Settings, *services: str) -> None:
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
                places = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
                consumer.assign(places)
                await consumer.commit(await consumer.end_offsets(places))
            finally:
                await consumer.stop()
