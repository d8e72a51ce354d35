"""Publishes events as a service does."""

from __future__ import annotations

from schemas.base import Event
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
