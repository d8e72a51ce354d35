"""Which deliveries are new. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

from shared.kafka.delivery import Delivery

_WHERE = attrgetter("topic", "partition", "offset")


def new_deliveries(
    deliveries: Iterable[Delivery[Any]], committed: Mapping[tuple[str, int], int]
) -> list[Delivery[Any]]:
    """Those above the offset that the table has committed for their partition, each once."""
    furthest = dict(committed)
    fresh = []
    for delivery in sorted(deliveries, key=_WHERE):
        place = (delivery.topic, delivery.partition)
        if delivery.offset > furthest.get(place, -1):
            furthest[place] = delivery.offset
            fresh.append(delivery)
    return fresh
