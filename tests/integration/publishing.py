"""Publishes events as a service does; and a publisher that cannot, for a while."""

from __future__ import annotations

from typing import Any

from schemas.base import Event
from shared.errors import DependencyUnavailable
from shared.kafka.broker import build_broker
from shared.kafka.publisher import Publisher
from shared.settings import Settings


async def publish(settings: Settings, service: str, *events: Event) -> None:
    broker = build_broker(settings, service)
    await broker.connect()
    try:
        for event in events:
            await Publisher(broker, service).publish(event)
    finally:
        await broker.stop()


class AbsentBroker:
    """A publisher whose broker is away at first."""

    def __init__(self) -> None:
        self.is_away = True
        self.published: list[Any] = []

    async def publish(self, event: Event) -> None:
        if self.is_away:
            raise DependencyUnavailable("no broker")
        self.published.append(event)
