"""Reads again from Kafka what was passed while shadow's flag was off, once it is on.

The requests are eligible by the same rules as new ones, and none is chosen: those that may be replayed are all of them,
within the budget and MAX_AGE, so it does not matter for the test when they are compared.
"""

from __future__ import annotations

import asyncio
import logging

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from schemas.catalog import HEADER_ONLY, topic_of
from schemas.predictions import PredictionLogged
from services.shadow.clients import POLL_SECONDS
from services.shadow.handlers import Handlers
from services.shadow.replays import MAX_REQUESTS
from services.shadow.settings import ShadowSettings
from services.shadow.storage import PostgresDecisions, ReplayBacklog
from shared.errors import InvalidMessage, Paused
from shared.kafka.clients import MAX_MESSAGE_BYTES, end_offsets, open_consumer
from shared.kafka.delivery import Delivery, decode_event, record_headers

logger = logging.getLogger(__name__)

TURN_SECONDS = 60.0
"""So long one is worked off before the others: that of a loud task takes hours, and what another task logs meanwhile
joins its own."""

Deliveries = list[Delivery[PredictionLogged]]
_TOPIC = topic_of(PredictionLogged).name


class CatchUp:
    """Works off the backlogs, one partition at a time and in turns, and each in one process at a time."""

    def __init__(self, settings: ShadowSettings, backlogs: PostgresDecisions, handlers: Handlers) -> None:
        self._settings = settings
        self._backlogs = backlogs
        self._handlers = handlers
        self._announced: set[tuple[str, int]] = set()

    async def run_forever(self) -> None:
        """Background, started when the broker answers."""
        while True:
            for backlog in await self._backlogs.backlogs():
                if await self._handlers.is_over(backlog):
                    await self._backlogs.drop(backlog)
                elif await self._handlers.is_ready(backlog):
                    async with self._backlogs.claimed(backlog) as ours:
                        if ours is not None:
                            await self._work_off(ours)
            await asyncio.sleep(POLL_SECONDS)

    async def _work_off(self, backlog: ReplayBacklog) -> None:
        partition = TopicPartition(_TOPIC, backlog.partition)
        if (await end_offsets(self._settings, [partition]))[partition] < backlog.end_offset:
            logger.warning("%s: the log of %s is shorter than it was: its backlog is gone", backlog.task, partition)
            return await self._backlogs.drop(backlog)
        if (turn := (backlog.rollout_id, backlog.partition)) not in self._announced:
            self._announced.add(turn)
            logger.info(
                "%s: catches up with what was logged while shadow was off, from offset %d of partition %d",
                backlog.task, backlog.next_offset, backlog.partition,
            )  # fmt: skip
        options = {"auto_offset_reset": "earliest", "max_partition_fetch_bytes": MAX_MESSAGE_BYTES}
        async with open_consumer(self._settings, group_id=None, **options) as consumer:
            consumer.assign([partition])
            consumer.seek(partition, backlog.next_offset)
            left: ReplayBacklog | None = backlog
            clock = asyncio.get_running_loop().time
            ends = clock() + TURN_SECONDS
            while left is not None and await self._replay(left, await self._read(consumer, partition, left)):
                done = min(await consumer.position(partition), left.end_offset)
                left = await self._backlogs.advance(left, done)
                if left is not None:  # What was read beyond the end may have joined the backlog meanwhile.
                    consumer.seek(partition, left.next_offset)
                if clock() > ends:
                    break

    async def _replay(self, backlog: ReplayBacklog, deliveries: Deliveries) -> bool:
        """Replay a batch, however late its turn comes. Return False if the flag is off, or the rollout has ended."""
        while not await self._handlers.is_over(backlog):
            try:
                return await self._handlers.on_backlog(backlog, deliveries)
            except Paused:  # It goes on with what is left of the batch.
                await asyncio.sleep(POLL_SECONDS)
        return False

    async def _read(self, consumer: AIOKafkaConsumer, partition: TopicPartition, backlog: ReplayBacklog) -> Deliveries:
        """Return the next requests of the backlog's task; none where the next records are of other tasks."""
        batch = await consumer.getmany(partition, timeout_ms=1_000, max_records=MAX_REQUESTS)
        deliveries = [_delivery(record) for record in batch.get(partition, []) if record.offset < backlog.end_offset]
        return [delivery for delivery in deliveries if delivery is not None and delivery.event.task == backlog.task]


def _delivery(record: ConsumerRecord) -> Delivery[PredictionLogged] | None:
    """Return a record's request; None for what is a dead letter, or was replayed for another service."""
    headers = record_headers(record)
    if headers.get(HEADER_ONLY, "shadow") != "shadow":
        return None
    try:
        event = decode_event(PredictionLogged, record.value or b"")
    except InvalidMessage:
        return None
    return Delivery(event, record.topic, record.partition, record.offset, headers)
