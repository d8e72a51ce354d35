"""Topics of a broker that is killed again and again: a publisher that tries again, a reader that starts again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiokafka.errors import KafkaError

from schemas.base import Event
from schemas.catalog import topic_of
from shared.errors import DependencyUnavailable
from shared.kafka.broker import build_broker
from shared.kafka.clients import open_consumer
from shared.kafka.publisher import Publisher
from shared.settings import Settings

_PAUSE = 0.5
Handler = Callable[[Any], Awaitable[None]]


class PatientPublisher:
    """Publishes in the names of several services, each event until the broker has it."""

    def __init__(self, settings: Settings, services: tuple[str, ...]) -> None:
        self._broker = build_broker(settings, "chaos")
        self._publishers = {service: Publisher(self._broker, service) for service in services}

    async def start(self) -> None:
        await self._broker.connect()

    async def close(self) -> None:
        await self._broker.stop()

    async def publish(self, service: str, event: Event) -> None:
        while True:
            with contextlib.suppress(DependencyUnavailable):
                await self._publishers[service].publish(event)
                return
            await asyncio.sleep(_PAUSE)


async def follow(settings: Settings, handlers: Mapping[type[Event], Handler]) -> None:
    """Hand every event of these topics to its handler, once each, in the order of its partition, until cancelled."""
    kinds = {topic_of(kind).name: kind for kind in handlers}
    seen: set[str] = set()
    while True:
        try:
            async with open_consumer(settings, *kinds, group_id=None, auto_offset_reset="earliest") as consumer:
                async for record in consumer:
                    kind = kinds[record.topic]
                    event = kind.model_validate_json(record.value or b"")
                    if str(event.event_id) not in seen:
                        seen.add(str(event.event_id))
                        await handlers[kind](event)
        except (KafkaError, ConnectionError, TimeoutError, DependencyUnavailable):
            await asyncio.sleep(_PAUSE)
