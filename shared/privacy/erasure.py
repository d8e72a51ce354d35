"""Who asked to be forgotten, remembered in the database of every service that keeps what is theirs.

The rule is the same everywhere: what a person asked is dropped if it happened at or before the moment of their
asking to be forgotten, in whatever order the two are read and however often. What they do later is new, and is kept.

`remember` and `forgotten_among` wait for each other (an advisory lock of the schema): without it, a row that is being
written while its person is being forgotten would be seen by neither and stay.
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


def forgotten_table(metadata: sa.MetaData) -> sa.Table:
    """The table `forgotten` of a service's schema: until when what a person did is dropped, by task."""
    return sa.Table(
        "forgotten",
        metadata,
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("subject_hash", sa.Text, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )


@dataclass(frozen=True)
class Forgotten:
    """Until when each person, by task and hash, is forgotten."""

    until: Mapping[tuple[str, str], datetime]

    def covers(self, task: str, user_hash: str | None, happened_at: datetime) -> bool:
        """Whether this is to be dropped: it is of a forgotten person and did not happen after the asking."""
        until = None if user_hash is None else self.until.get((task, user_hash))
        return until is not None and happened_at <= until

    def ever(self, task: str, user_hash: str | None) -> bool:
        """Whether this person was forgotten at any time."""
        return user_hash is not None and (task, user_hash) in self.until


async def remember(connection: AsyncConnection, table: sa.Table, event: SubjectForgotten) -> None:
    """Note who is forgotten. Call it before deleting what is theirs, in the same transaction."""
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    statement = insert(table).values(task=event.task, subject_hash=event.subject_hash, at=event.occurred_at)
    newest = sa.func.greatest(table.c.at, statement.excluded.at)
    await connection.execute(
        statement.on_conflict_do_update(index_elements=["task", "subject_hash"], set_={"at": newest})
    )


async def forgotten_among(
    connection: AsyncConnection, table: sa.Table, people: Iterable[tuple[str, str | None]]
) -> Forgotten:
    """The forgotten among these (task, user hash). Call it before storing what is theirs, in the same transaction."""
    known = sorted({(task, user_hash) for task, user_hash in people if user_hash is not None})
    if not known:
        return Forgotten({})
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(_LOCK)))
    rows = await connection.execute(sa.select(table).where(sa.tuple_(table.c.task, table.c.subject_hash).in_(known)))
    return Forgotten({(row.task, row.subject_hash): row.at for row in rows})
