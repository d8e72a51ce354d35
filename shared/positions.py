"""How far a service has read, kept in the same transaction as what it made of it.

A cycle's fence says up to where its inputs go; a service that has not read that far yet waits, and one that has
read further leaves the rest for the next cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.cycles import PartitionFence
from shared.delivery import Delivery, Place


def positions_table(metadata: MetaData) -> Table:
    """The table `positions` of a service's schema: next offset to read, by topic and partition."""
    return Table(
        "positions",
        metadata,
        Column("topic", Text, primary_key=True),
        Column("partition", Integer, primary_key=True),
        Column("next_offset", BigInteger, nullable=False),
    )


async def advance(connection: AsyncConnection, table: Table, deliveries: Iterable[Delivery[Any] | Place]) -> None:
    """Note that these were handled, or buried. A redelivery never moves a position back."""
    furthest: dict[tuple[str, int], int] = {}
    for delivery in deliveries:
        place = (delivery.topic, delivery.partition)
        furthest[place] = max(furthest.get(place, 0), delivery.offset + 1)
    for (topic, partition), offset in sorted(furthest.items()):
        statement = insert(table).values(topic=topic, partition=partition, next_offset=offset)
        newest = func.greatest(table.c.next_offset, statement.excluded.next_offset)
        await connection.execute(
            statement.on_conflict_do_update(index_elements=["topic", "partition"], set_={"next_offset": newest})
        )


async def behind(
    connection: AsyncConnection, table: Table, fence: Sequence[PartitionFence], topics: Sequence[str]
) -> list[PartitionFence]:
    """The partitions of `topics` whose fence is not reached yet; empty when all inputs of the cycle are in."""
    rows = await connection.execute(select(table.c.topic, table.c.partition, table.c.next_offset))
    reached = {(row.topic, row.partition): row.next_offset for row in rows}
    return [
        part for part in fence if part.topic in topics and reached.get((part.topic, part.partition), 0) < part.offset
    ]
