"""How far a service has read, kept in the same transaction as what it made of it.

A cycle's fence says up to where its inputs go; a service that has not read that far yet waits, and one that has
read further leaves the rest for the next cycle.

Offsets mean something in one incarnation of the broker only. When its topics were lost, an operator names a new one
(RATCHET_KAFKA_INCARNATION, `ratchet lake go-on`): positions start at 0 again, and what was kept from the old topics
lies before everything in the new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.cycles import PartitionFence
from shared.kafka.delivery import Delivery, RecordPosition

_BEFORE = 2**40
"""More than any offset: what is moved down by it lies before all that comes, and after what was moved twice."""


def offsets_table(metadata: MetaData) -> Table:
    """The table `positions` of a service's schema: next offset to read, by topic and partition."""
    return Table(
        "positions",
        metadata,
        Column("topic", Text, primary_key=True),
        Column("partition", Integer, primary_key=True),
        Column("next_offset", BigInteger, nullable=False),
    )


def incarnation_table(metadata: MetaData) -> Table:
    """The table `broker` of a service's schema: one row, the incarnation that its offsets are of."""
    return Table("broker", metadata, Column("incarnation", Text, primary_key=True))


async def adopt_incarnation(
    connection: AsyncConnection, broker: Table, positions: Table, incarnation: str, offsets: Sequence[Column[Any]]
) -> bool:
    """At a service's start: have its offsets be of this incarnation; returns whether they were of another.

    `offsets`: the columns that hold offsets of what is kept. They are moved below 0, in the same order.
    """
    await connection.execute(text(f'LOCK TABLE "{broker.name}" IN EXCLUSIVE MODE'))  # One of two that start at once.
    known = (await connection.execute(select(broker.c.incarnation))).scalar_one_or_none()
    if known == incarnation:
        return False
    await connection.execute(delete(broker))
    await connection.execute(insert(broker).values(incarnation=incarnation))
    if (known or "") == incarnation:
        return False
    for column in offsets:
        await connection.execute(update(column.table).values({column: column - _BEFORE}))
    await connection.execute(update(positions).values(next_offset=0))
    return True


async def advance_offsets(
    connection: AsyncConnection, table: Table, deliveries: Iterable[Delivery[Any] | RecordPosition]
) -> None:
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


async def unread(connection: AsyncConnection, table: Table, fence: Sequence[PartitionFence]) -> list[PartitionFence]:
    """Return the partitions of the fence that are not read up to it; empty once all inputs of the cycle are stored."""
    rows = await connection.execute(select(table.c.topic, table.c.partition, table.c.next_offset))
    reached = {(row.topic, row.partition): row.next_offset for row in rows}
    return [part for part in fence if reached.get((part.topic, part.partition), 0) < part.offset]
