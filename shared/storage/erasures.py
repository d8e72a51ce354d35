"""Applies erasures to a service's database, and to one that was restored or made anew those that it lacks again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from schemas.predictions import SubjectForgotten
from shared.kafka.clients import end_offsets
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery, RecordPosition, TopicPartition
from shared.kafka.resuming import resume_where_stored
from shared.settings import Settings

_BATCH = BatchOptions(20)
"""Few at once: a database that was made anew reads all that there ever were."""


class OffsetStore(Protocol):
    """The next offsets in the database that the erasures are applied to."""

    async def skip(self, position: RecordPosition | Delivery[Any]) -> None: ...
    async def next_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]: ...


def subscribe_erasures(
    consumers: Consumers,
    settings: Settings,
    offsets: OffsetStore,
    forget: Callable[[SubjectForgotten], Awaitable[None]],
) -> None:
    """Have `forget`, which is idempotent, called with every erasure that the database lacks.

    By the offsets of its group a database that was restored, or made anew, would have forgotten nobody.
    """

    async def on_forgotten(deliveries: list[Delivery[SubjectForgotten]]) -> None:
        for delivery in deliveries:
            await forget(delivery.event)
            await offsets.skip(delivery)

    resume = resume_where_stored(offsets.next_offsets, partial(end_offsets, settings))
    consumers.on_batch(SubjectForgotten, on_forgotten, _BATCH, on_skipped=offsets.skip, resume=resume)
