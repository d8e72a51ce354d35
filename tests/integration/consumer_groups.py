"""Lets a test that starts a whole service skip the events that other tests left on the shared broker."""

from __future__ import annotations

from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from sqlalchemy import Table

from schemas.catalog import topics_consumed_by
from services import dataset_builder, failure_miner
from services.dataset_builder.tables import OFFSETS as BUILDER_OFFSETS
from services.failure_miner.tables import OFFSETS as MINER_OFFSETS
from shared.kafka.delivery import RecordPosition
from shared.settings import Settings
from shared.storage.database import build_engine, transaction
from shared.storage.migration import migrate
from shared.storage.offsets import advance_offsets

_STORED: dict[str, tuple[Table, list[str]]] = {
    "failure_miner": (MINER_OFFSETS, list(failure_miner.__path__)),
    "dataset_builder": (BUILDER_OFFSETS, list(dataset_builder.__path__)),
}
"""Services that read on from the offsets of their database: its table of them, and the service's folder."""


async def skip_backlog(settings: Settings, *services: str) -> None:
    """Move the services to the end of their topics. They must not be running."""
    for service in services:
        ends: dict[TopicPartition, int] = {}
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
                ends |= (found := await consumer.end_offsets(partitions))
                await consumer.commit(found)
            finally:
                await consumer.stop()
        if service in _STORED:
            await _store(settings, service, ends)


async def _store(settings: Settings, service: str, ends: dict[TopicPartition, int]) -> None:
    table, (folder, *_) = _STORED[service]
    await migrate(settings, service, Path(folder) / "migrations")
    engine = build_engine(settings, service)
    last = [RecordPosition(part.topic, part.partition, end - 1) for part, end in ends.items() if end]
    async with transaction(engine) as connection:
        await advance_offsets(connection, table, last)
    await engine.dispose()
