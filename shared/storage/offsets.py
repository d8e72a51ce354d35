"""A service's next offsets to read, stored with what it made of the records, and not before what it publishes of them.

A cycle's fence says where its inputs end; a service that has not read up to it waits, and one that has read further
leaves the rest for the next cycle.

Offsets belong to one broker incarnation; another incarnation invalidates them. When the broker's topics were lost, an
operator names a new one (RATCHET_KAFKA_INCARNATION, `ratchet lake resume`): offsets start at 0 again, and rows from the
old topics come before everything in the new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, delete, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.cycles import PartitionFence
from shared.kafka.delivery import Delivery, RecordPosition, TopicPartition
from shared.storage.database import transaction

# More than any offset: rows shifted down by it come before all new ones, and after rows shifted twice.
_OFFSETS_PER_INCARNATION = 2**40


def offsets_table(metadata: MetaData) -> Table:
    """Return the table `offsets` of a service's schema: the next offset to read, by topic and partition."""
    return Table(
        "offsets",
        metadata,
        Column("topic", Text, primary_key=True),
        Column("partition", Integer, primary_key=True),
        Column("next_offset", BigInteger, nullable=False),
    )


def incarnation_table(metadata: MetaData) -> Table:
    """Return the table `broker_incarnation` of a service's schema: one row, the incarnation of its offsets."""
    return Table("broker_incarnation", metadata, Column("incarnation", Text, primary_key=True))


async def adopt_incarnation(
    connection: AsyncConnection, incarnations: Table, offsets: Table, incarnation: str, columns: Sequence[Column[Any]]
) -> bool:
    """Make a starting service's offsets belong to `incarnation`; returns True if they belonged to another.

    `columns` hold offsets of stored rows. They are shifted below 0 and keep their order.
    """
    # Two processes may start at once.
    await connection.execute(text(f'LOCK TABLE "{incarnations.name}" IN EXCLUSIVE MODE'))
    stored = (await connection.execute(select(incarnations.c.incarnation))).scalar_one_or_none()
    if stored == incarnation:
        return False
    await connection.execute(delete(incarnations))
    await connection.execute(insert(incarnations).values(incarnation=incarnation))
    if (stored or "") == incarnation:
        return False
    for column in columns:
        await connection.execute(update(column.table).values({column: column - _OFFSETS_PER_INCARNATION}))
    await connection.execute(update(offsets).values(next_offset=0))
    return True


async def advance_offsets(
    connection: AsyncConnection, table: Table, deliveries: Iterable[Delivery[Any] | RecordPosition]
) -> None:
    """Store that these records were handled or skipped. A redelivery never moves an offset back."""
    next_offsets: dict[tuple[str, int], int] = {}
    for delivery in deliveries:
        partition = (delivery.topic, delivery.partition)
        next_offsets[partition] = max(next_offsets.get(partition, 0), delivery.offset + 1)
    for (topic, number), offset in sorted(next_offsets.items()):
        statement = insert(table).values(topic=topic, partition=number, next_offset=offset)
        newest = func.greatest(table.c.next_offset, statement.excluded.next_offset)
        await connection.execute(
            statement.on_conflict_do_update(index_elements=["topic", "partition"], set_={"next_offset": newest})
        )


async def next_offsets(
    connection: AsyncConnection, table: Table, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """Return the next offset to read of those of the partitions of which any record was read."""
    is_wanted = tuple_(table.c.topic, table.c.partition).in_([tuple(partition) for partition in partitions])
    rows = await connection.execute(select(table).where(is_wanted))
    return {TopicPartition(row.topic, row.partition): row.next_offset for row in rows}


async def unread(connection: AsyncConnection, table: Table, fence: Sequence[PartitionFence]) -> list[PartitionFence]:
    """Return the partitions of the fence that are not read up to it; empty once all inputs of the cycle are stored."""
    rows = await connection.execute(select(table.c.topic, table.c.partition, table.c.next_offset))
    reached = {(row.topic, row.partition): row.next_offset for row in rows}
    return [part for part in fence if reached.get((part.topic, part.partition), 0) < part.offset]


class PostgresOffsets:
    """A service's next offsets of what its database must read again once it was restored.

    Methods raise DependencyUnavailable while the database is away.
    """

    def __init__(self, engine: AsyncEngine, offsets: Table, incarnations: Table) -> None:
        self._engine = engine
        self._offsets = offsets
        self._incarnations = incarnations

    async def adopt(self, incarnation: str) -> None:
        """Make all stored offsets those of this broker incarnation. Call it at the start, before anything is read."""
        async with transaction(self._engine) as connection:
            await adopt_incarnation(connection, self._incarnations, self._offsets, incarnation, [])

    async def skip(self, position: RecordPosition | Delivery[Any]) -> None:
        """Advance the offset over a record, once what is made of it is stored."""
        async with transaction(self._engine) as connection:
            await advance_offsets(connection, self._offsets, [position])

    async def next_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the next offset to read of those of the partitions of which any record was read."""
        async with transaction(self._engine) as connection:
            return await next_offsets(connection, self._offsets, partitions)
