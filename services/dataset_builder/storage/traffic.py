"""Production's answers by hour, from roll-ups, in PostgreSQL."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.predictions import PredictionsRolledUp
from services.dataset_builder.tables import TRAFFIC
from shared.storage.database import transaction

_RETENTION = timedelta(days=7)


class PostgresTrafficStore:
    """Methods raise DependencyUnavailable while the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def save_hour(self, event: PredictionsRolledUp) -> None:
        """Store an hour's answers; an older count that is read again stays out. Drops hours older than a week."""
        row = {
            "task": event.task, "task_revision": event.task_revision, "variant": event.variant.value,
            "adapter": event.adapter or "", "hour": event.hour,
            "answers": {label.answer: label.count for label in event.answers}, "occurred_at": event.occurred_at,
        }  # fmt: skip
        async with transaction(self._engine) as connection:
            statement = insert(TRAFFIC).values(row)
            key = list(TRAFFIC.primary_key.columns)
            values = {name: statement.excluded[name] for name in ("answers", "occurred_at")}
            is_newer = TRAFFIC.c.occurred_at <= event.occurred_at
            await connection.execute(statement.on_conflict_do_update(index_elements=key, set_=values, where=is_newer))
            oldest = event.hour - _RETENTION
            await connection.execute(sa.delete(TRAFFIC).where(TRAFFIC.c.task == event.task, TRAFFIC.c.hour < oldest))

    async def answer_counts(self, task: str, revision: str, hours: int) -> dict[str, int]:
        """Return how often production gave each answer in the last `hours` that were rolled up."""
        of_task = sa.and_(TRAFFIC.c.task == task, TRAFFIC.c.task_revision == revision)
        newest = sa.select(sa.func.max(TRAFFIC.c.hour)).where(of_task).scalar_subquery()
        query = sa.select(TRAFFIC.c.answers).where(of_task, TRAFFIC.c.hour > newest - timedelta(hours=hours))
        counts: Counter[str] = Counter()
        async with transaction(self._engine) as connection:
            for answers in (await connection.execute(query)).scalars():
                counts.update(answers)
        return dict(counts)
