"""Dead letters: read what a service could not handle, and send it again to that service alone.

A replayed record goes back to its topic with `x-ratchet-only`, so that the topic's other consumers, who handled it
the first time, pass it by. How far a service's letters are replayed is the committed offset of a consumer group.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas import deadletters as dl
from shared.settings import Settings

_QUIET_MS = 1_500
"""No record for this long means that the end was reached: tansu's end offsets cannot be trusted."""


@dataclass(frozen=True)
class Letter:
    """One dead letter. `offset` is its place in the dead-letter topic."""

    offset: int
    key: bytes | None
    value: bytes
    headers: dict[str, str]

    @property
    def topic(self) -> str:
        return self.headers.get(dl.HEADER_TOPIC, "?")

    @property
    def error(self) -> str:
        return self.headers.get(dl.HEADER_ERROR, "?")


async def read_letters(settings: Settings, service: str) -> list[Letter]:
    """The service's letters that were not replayed yet, oldest first."""
    async with _reading(settings, service) as consumer:
        return [letter async for letter in _letters(consumer)]


async def replay_letters(settings: Settings, service: str, limit: int | None = None) -> int:
    """Send letters back to their topics, for this service only; returns how many.

    Each is acknowledged by the broker before the next is taken, and only then noted as replayed: a crash in between
    sends one letter twice, which handlers bear, and never none.
    """
    letters = await read_letters(settings, service)  # A list: what fails again becomes a letter behind these.
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka, acks="all")
    await producer.start()
    try:
        async with _reading(settings, service) as consumer:
            for letter in letters[:limit]:
                headers = _again(letter, service)
                await producer.send_and_wait(letter.topic, letter.value, key=letter.key, headers=headers)
                await consumer.commit({_partition(service): letter.offset + 1})
    finally:
        await producer.stop()
    return len(letters[:limit])


def _again(letter: Letter, service: str) -> list[tuple[str, bytes]]:
    replayed = int(letter.headers.get(dl.HEADER_REPLAYED, "0")) + 1
    headers = {"content-type": "application/json", dl.HEADER_ONLY: service, dl.HEADER_REPLAYED: str(replayed)}
    return [(name, value.encode()) for name, value in headers.items()]


def _partition(service: str) -> TopicPartition:
    return TopicPartition(dl.dead_letter_topic(service), 0)


@asynccontextmanager
async def _reading(settings: Settings, service: str) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka,
        group_id=f"ratchet.letters.{service}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        consumer.assign([_partition(service)])
        yield consumer
    finally:
        await consumer.stop()


async def _letters(consumer: AIOKafkaConsumer) -> AsyncIterator[Letter]:
    while records := await consumer.getmany(timeout_ms=_QUIET_MS):
        for batch in records.values():
            for record in batch:
                headers = {name: value.decode(errors="replace") for name, value in record.headers}
                yield Letter(record.offset, record.key, record.value, headers)
