"""Where events go. `Log` is the promise that an answer waits for; `Observations` promise nothing and never wait."""

from __future__ import annotations

import asyncio
from typing import Protocol

from schemas.base import Event
from services.gateway.metrics import Metrics
from shared.errors import DependencyUnavailable
from shared.transport import Publishes

_PAUSE_SECONDS = 1.0
_AT_ONCE = 100


class Log(Protocol):
    """Keeps events for ever once `append` has returned."""

    async def append(self, *events: Event) -> None:
        """Returns when all are kept, whatever dies next. Raises DependencyUnavailable: then do not answer."""


class KafkaLog:
    """Kept when all replicas of the broker have it."""

    def __init__(self, publisher: Publishes, seconds: float) -> None:
        self._publisher = publisher
        self._seconds = seconds

    async def append(self, *events: Event) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await asyncio.gather(*(self._publisher.publish(event) for event in events))
        except TimeoutError as error:
            # The record may still arrive: then a prediction is kept that nobody was given, which harms nothing.
            raise DependencyUnavailable(
                f"the event log took no record within {self._seconds:g} s", "Check the broker: ratchet status"
            ) from error


class Observations:
    """A bounded queue to the broker, beside the request path. What does not fit is dropped and counted."""

    def __init__(self, publisher: Publishes, kept: int, metrics: Metrics) -> None:
        self._publisher = publisher
        self._queue: asyncio.Queue[Event] = asyncio.Queue(kept)
        self._metrics = metrics

    def offer(self, event: Event) -> None:
        """Never waits, never fails."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._metrics.observations_dropped.inc()

    async def ship_forever(self) -> None:
        """Background: send what waits, some at once, each until the broker has it."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < _AT_ONCE and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await asyncio.gather(*map(self._ship, batch))

    async def _ship(self, event: Event) -> None:
        while True:
            try:
                return await self._publisher.publish(event)
            except DependencyUnavailable:
                await asyncio.sleep(_PAUSE_SECONDS)
