"""Decides which deliveries are new. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

from shared.kafka.delivery import Delivery

_POSITION = attrgetter("topic", "partition", "offset")


def new_deliveries(
    deliveries: Iterable[Delivery[Any]], committed: Mapping[tuple[str, int], int]
) -> list[Delivery[Any]]:
    """Return the deliveries above the committed offset of their partition, each once, in the order of their offsets."""
    last_offsets = dict(committed)
    new = []
    for delivery in sorted(deliveries, key=_POSITION):
        partition = (delivery.topic, delivery.partition)
        if delivery.offset > last_offsets.get(partition, -1):
            last_offsets[partition] = delivery.offset
            new.append(delivery)
    return new
