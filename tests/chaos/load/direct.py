"""A producer that sends events to Kafka, as an application without gateway does."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from schemas.predictions import PredictionSubmitted
from tests.chaos.ledger import Ledger
from tests.chaos.load.conversations import Object
from tests.chaos.system import System

SUBMITTED = "predictions.submitted.v1"


@dataclass
class DirectCounts:
    """`copies`: records beyond the first of each event. `reordered`: events that were sent late."""

    copies: int = 0
    reordered: int = 0
    poison: int = 0


class DirectProducer:
    """Records the broker's acknowledgements, and sends copies of some events later."""

    def __init__(self, system: System, ledger: Ledger, rng: random.Random) -> None:
        self._ledger = ledger
        self._random = rng
        self.counts = DirectCounts()
        self.acknowledged = 0
        self._acknowledged: list[str] = []
        self._scheduled: list[tuple[float, str, bytes, str | None]] = []
        self._unacknowledged: Counter[str] = Counter()
        self._producer = Producer({
            "bootstrap.servers": system.settings.kafka, "acks": "all", "linger.ms": 20, "message.timeout.ms": 300_000,
            "enable.idempotence": system.settings.kafka_idempotence, "reconnect.backoff.max.ms": 1_000, "log_level": 0,
        })  # fmt: skip

    @property
    def waiting(self) -> int:
        """The number of records that the broker has not acknowledged."""
        return len(self._producer)

    def has_unacknowledged(self, user: str) -> bool:
        """Return True if a record of this user is still unacknowledged."""
        return self._unacknowledged[user] > 0

    def send(self, event: PredictionSubmitted) -> None:
        """Submit one prediction one to three times; its copies come up to five seconds later, after newer ones."""
        value, user = event.model_dump_json().encode(), event.user
        copies = self._random.choices((1, 2, 3), (60, 25, 15))[0]
        if user:
            self._unacknowledged[user] += copies
        late = self._random.random() < 0.3
        for copy in range(copies):
            delay = self._random.uniform(0.2, 5.0) if copy or late else 0.0
            self._scheduled.append((time.monotonic() + delay, event.prediction_id, value, user))
        self.counts.copies += copies - 1
        self.counts.reordered += int(late)

    def send_poison(self) -> None:
        """Send a record that no service can handle: it must be dead-lettered and must not stop the partition."""
        self.counts.poison += 1
        self._producer.produce(SUBMITTED, b'{"task": "no event"', f"poison-{self.counts.poison}")

    def publish(self, topic: str, key: str, value: bytes) -> None:
        self._producer.produce(topic, value, key)

    def poll(self) -> None:
        """Send what is due, and record acknowledgements."""
        now = time.monotonic()
        due = [record for record in self._scheduled if record[0] <= now]
        self._scheduled = [record for record in self._scheduled if record[0] > now]
        for _, own_id, value, user in sorted(due, key=lambda record: record[:2]):
            self._producer.produce(
                SUBMITTED, value, own_id,
                on_delivery=lambda error, message, user=user: self._delivered(error, message, user),
            )  # fmt: skip
        self._producer.poll(0)
        if self._acknowledged:
            self._ledger.record_accepted((marker, ()) for marker in self._acknowledged)
            self._acknowledged.clear()

    def _delivered(self, error: KafkaError | None, message: Message, user: str | None) -> None:
        if user:
            self._unacknowledged[user] -= 1
        if error is None:
            self.acknowledged += 1
            self._acknowledged.append(message.key().decode())

    async def finish(self, seconds: float = 120.0) -> None:
        """Send the last copies and wait for all acknowledgements."""
        deadline = time.monotonic() + seconds
        while (self._scheduled or self.waiting) and time.monotonic() < deadline:
            self.poll()
            await asyncio.sleep(0.05)
        self.poll()


def event_messages(messages: list[Object]) -> list[Object]:
    """Messages of the chat API as an event has them: calls of tools are flat."""
    return [
        {**message, "tool_calls": event_calls(message["tool_calls"])} if "tool_calls" in message else message
        for message in messages
    ]


def event_calls(calls: list[Object]) -> list[dict[str, Any]]:
    """Calls of tools of the chat API as an event has them."""
    return [{"id": call["id"], **call["function"]} for call in calls]
