"""Records who asked to be erased, in the database of every service that stores personal data, and filters new rows.

One rule everywhere: a row of an erased person is dropped if it happened at or before their request, whatever the order
in which row and request arrive and however often. What the person does later is stored as usual.

`record_erasure` and `erased_among` exclude each other by an advisory lock of the schema: otherwise a row written while
its person is being erased would escape both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.predictions import SubjectForgotten

_LOCK = sa.func.hashtext(sa.literal("forgetting ") + sa.func.current_schema())


def erased_subjects_table(metadata: sa.MetaData) -> sa.Table:
    """Define a service's table `forgotten`: per task and person, the moment up to which rows are erased."""
    return sa.Table(
        "forgotten",
        metadata,
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("subject_hash", sa.Text, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )


@dataclass(frozen=True)
class ErasedSubjects:
    """The moment up to which each person, by (task, user hash), is erased."""

    erased_until: Mapping[tuple[str, str], datetime]

    def covers(self, task: str, user_hash: str | None, happened_at: datetime) -> bool:
        """Return True if a row must be dropped: its person is erased and it happened no later than their request."""
        erased_until = None if user_hash is None else self.erased_until.get((task, user_hash))
        return erased_until is not None and happened_at <= erased_until

    def includes(self, task: str, user_hash: str | None) -> bool:
        """Return True if this person was erased at any time."""
        return user_hash is not None and (task, user_hash) in self.erased_until


async def record_erasure(connection: AsyncConnection, table: sa.Table, event: SubjectForgotten) -> bool:
    """Record that a person is erased. Call it before deleting their rows, in the same transaction.

    Returns False if that, or a later request of theirs, is recorded already: the person's rows are of what came later.
    """
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    statement = insert(table).values(task=event.task, subject_hash=event.subject_hash, at=event.occurred_at)
    newer = statement.on_conflict_do_update(
        index_elements=["task", "subject_hash"],
        set_={"at": statement.excluded.at},
        where=table.c.at < event.occurred_at,
    )
    return (await connection.execute(newer.returning(table.c.at))).first() is not None


async def put_off_erasures(connection: AsyncConnection) -> None:
    """Have erasures wait until this transaction ends: what it reads has nobody in it who is erased meanwhile."""
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(_LOCK)))


async def erased_among(
    connection: AsyncConnection, table: sa.Table, people: Iterable[tuple[str, str | None]]
) -> ErasedSubjects:
    """Return the erased of these (task, user hash). Call it before storing their rows, in the same transaction."""
    subjects = sorted({(task, user_hash) for task, user_hash in people if user_hash is not None})
    if not subjects:
        return ErasedSubjects({})
    await put_off_erasures(connection)
    rows = await connection.execute(sa.select(table).where(sa.tuple_(table.c.task, table.c.subject_hash).in_(subjects)))
    return ErasedSubjects({(row.task, row.subject_hash): row.at for row in rows})
