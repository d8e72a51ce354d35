"""A broker in this process: the handlers that services subscribe get every event in the order of publication.

One partition a topic, at least once: a handler that is not ready gets its records again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from types import MappingProxyType
from typing import Any

from schemas.base import Event
from schemas.catalog import topic_of
from schemas.cycles import Fence, PartitionFence
from services.scheduler.clients import FENCED_TOPICS
from shared.errors import DependencyUnavailable
from shared.kafka.consumers import BatchOptions
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey

_BATCH = BatchOptions()

Handler = Callable[[list[Delivery[Any]]], Awaitable[None]]
_PATIENCE = 3
"""How often in a row nobody may be ready for what is left."""


class _Subscription:
    def __init__(self, event: type[Event], handler: Handler, at_once: int) -> None:
        self.event, self.handler, self.at_once = event, handler, at_once
        self.records: deque[Delivery[Any]] = deque()

    async def deliver(self) -> bool:
        """Hand over one batch. Returns False if there was none, or its handler is not ready for it."""
        batch = [self.records.popleft() for _ in range(min(self.at_once, len(self.records)))]
        try:
            if batch:
                await self.handler(batch)
        except DependencyUnavailable:
            self.records.extendleft(reversed(batch))
            return False
        return bool(batch)


class Bus:
    """Takes the place of `Publisher`, `Consumers` and `KafkaFenceReader`."""

    def __init__(self) -> None:
        self._subscriptions: list[_Subscription] = []
        self._tables: list[LatestByKey[Any]] = []
        self._ends: Counter[str] = Counter()

    async def publish(self, event: Event) -> None:
        topic = topic_of(type(event)).name
        delivery = Delivery(event, topic, 0, self._ends[topic], MappingProxyType({}))
        self._ends[topic] += 1
        for subscription in self._subscriptions:
            if isinstance(event, subscription.event):
                subscription.records.append(delivery)

    def on(self, event: type[Event], handler: Callable[[Any], Awaitable[None]]) -> None:
        async def handle(deliveries: list[Delivery[Any]]) -> None:
            await handler(deliveries[0].event)

        self._subscriptions.append(_Subscription(event, handle, 1))

    def on_batch(self, event: type[Event], handler: Handler, batch: BatchOptions = _BATCH, **_: object) -> None:
        self._subscriptions.append(_Subscription(event, handler, batch.max_records))

    def table(
        self, event: type[Event], on_value: Callable[[Any], Awaitable[None]] | None = None, *, on_older: bool = False
    ) -> LatestByKey[Any]:
        table: LatestByKey[Any] = LatestByKey(topic_of(event).name)

        async def put(value: Event) -> None:
            await table.put(value.task, value)
            if on_value is not None:
                await on_value(value)

        self.on(event, put)
        self._tables.append(table)
        return table

    async def open(self) -> None:
        """Let the tables know that there is nothing before the first event."""
        for table in self._tables:
            await table.read_to({})

    async def fence(self) -> Fence:
        return tuple(PartitionFence(topic=topic, partition=0, offset=self._ends[topic]) for topic in FENCED_TOPICS)

    async def drain(self) -> None:
        """Deliver until nothing is left. Raises RuntimeError if a handler never gets ready for its record."""
        waited = 0
        while any(subscription.records for subscription in self._subscriptions):
            progress = [await subscription.deliver() for subscription in self._subscriptions]
            waited = 0 if any(progress) else waited + 1
            if waited > _PATIENCE:
                left = [s.event.__name__ for s in self._subscriptions if s.records]
                raise RuntimeError(f"nobody gets ready for {', '.join(left)}")
