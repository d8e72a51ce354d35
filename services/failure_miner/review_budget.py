"""Grants questions within each task's review budget of the day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.failure_miner.tables import ASKED


@dataclass(frozen=True)
class BudgetClaim:
    """A question's claim on its task's review budget of the day."""

    prediction_id: str
    task: str
    day: date
    budget: int


async def grant_claims(connection: AsyncConnection, claims: Sequence[BudgetClaim]) -> set[str]:
    """Grant claims in their order within each task's budget. Return the predictions granted, now or earlier."""
    if not claims:
        return set()
    for task in sorted({claim.task for claim in claims}):  # Two processes must not spend the same budget.
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(f"asked {task}"))))
    ids = [claim.prediction_id for claim in claims]
    granted = set(
        (await connection.execute(sa.select(ASKED.c.prediction_id).where(ASKED.c.prediction_id.in_(ids)))).scalars()
    )
    days = {(claim.task, claim.day) for claim in claims}
    rows = await connection.execute(
        sa.select(ASKED.c.task, ASKED.c.day, sa.func.count().label("spent"))
        .where(sa.tuple_(ASKED.c.task, ASKED.c.day).in_(list(days)))
        .group_by(ASKED.c.task, ASKED.c.day)
    )
    spent: dict[tuple[str, date], int] = {(row.task, row.day): row.spent for row in rows}
    new = []
    for claim in claims:
        budget = (claim.task, claim.day)
        if claim.prediction_id not in granted and spent.get(budget, 0) < claim.budget:
            spent[budget] = spent.get(budget, 0) + 1
            granted.add(claim.prediction_id)
            new.append({"prediction_id": claim.prediction_id, "task": claim.task, "day": claim.day})
    if new:
        await connection.execute(insert(ASKED).on_conflict_do_nothing(), new)
    return granted
