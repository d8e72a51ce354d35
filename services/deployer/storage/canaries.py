"""What is counted of a canary, in PostgreSQL: a row for each request, for each subject with a bad event, and for each
subject and day of which a latency is measured.

The functions take the ledger's connection, so that what belongs together is committed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.deployer.statistics.canary import Arms, CanaryCounts, Latencies, Observation, rank_of
from services.deployer.statistics.guards import MEASURED_REQUESTS, SLOW, Guard, percentile_rank
from services.deployer.tables import BAD_USERS, LATENCIES, REQUESTS


async def canary_counts(connection: AsyncConnection, rollout_id: str) -> CanaryCounts:
    """Return all that the guards of a rollout read."""
    requests = sa.select(sa.func.count(), sa.func.count().filter(REQUESTS.c.failed))
    total, failed = (await connection.execute(requests.where(REQUESTS.c.rollout_id == rollout_id))).one()
    bad = sa.select(BAD_USERS.c.guard, sa.func.count().filter(BAD_USERS.c.canary), sa.func.count())
    rows = await connection.execute(bad.where(BAD_USERS.c.rollout_id == rollout_id).group_by(BAD_USERS.c.guard))
    arms = {Guard[name]: Arms(canary, both) for name, canary, both in rows}
    return CanaryCounts(total, failed, arms, await _latencies(connection, rollout_id))


async def add_requests(connection: AsyncConnection, rollout_id: str, observations: Sequence[Observation]) -> None:
    """Count the canary's requests, its latencies, and the subjects with a failed request. Idempotent."""
    requests = [
        {"rollout_id": rollout_id, "prediction_id": o.prediction_id, "user_key": o.user_key, "failed": o.failed}
        for o in observations if o.canary and o.counted
    ]  # fmt: skip
    bad = [
        {"rollout_id": rollout_id, "guard": Guard.ERRORS.name, "user_key": o.user_key, "canary": o.canary}
        for o in observations if o.failed and o.user_key
    ]  # fmt: skip
    if requests:
        await connection.execute(insert(REQUESTS).on_conflict_do_nothing(), requests)
    if bad:
        await connection.execute(insert(BAD_USERS).on_conflict_do_nothing(), bad)
    await _add_latencies(connection, rollout_id, [o for o in observations if o.canary], canary=True)


async def add_primary(connection: AsyncConnection, rollout_id: str, observations: Sequence[Observation]) -> None:
    """Measure the primary before the canary: a random sample of its subjects and days, as small as it may be."""
    await _add_latencies(connection, rollout_id, [o for o in observations if o.primary], canary=False)
    of_primary = sa.and_(LATENCIES.c.rollout_id == rollout_id, ~LATENCIES.c.canary)
    last = sa.select(LATENCIES.c.rank).where(of_primary).order_by(LATENCIES.c.rank).offset(MEASURED_REQUESTS).limit(1)
    await connection.execute(sa.delete(LATENCIES).where(of_primary, LATENCIES.c.rank >= last.scalar_subquery()))


async def add_complaint(
    connection: AsyncConnection, rollout_id: str, guard: Guard, prediction_id: str, user_key: str | None
) -> None:
    """Count the subject of an answer that somebody found wrong, in the arm that gave it. Idempotent.

    What is no known answer of the canary counts as the primary's, which can only spare the canary.
    """
    of_answer = sa.and_(REQUESTS.c.rollout_id == rollout_id, REQUESTS.c.prediction_id == prediction_id)
    asked = (await connection.execute(sa.select(REQUESTS.c.user_key).where(of_answer))).first()
    subject = (asked.user_key if asked is not None else user_key) or prediction_id
    row = {"rollout_id": rollout_id, "guard": guard.name, "user_key": subject, "canary": asked is not None}
    await connection.execute(insert(BAD_USERS).on_conflict_do_nothing(), row)


async def forget_subject(
    connection: AsyncConnection, rollouts: sa.ScalarSelect[str] | sa.Select[tuple[str]], subject: str
) -> None:
    """Put random keys in the place of a person's: what was counted remains."""
    anonymous = sa.cast(sa.func.gen_random_uuid(), sa.Text)
    for table in (REQUESTS, BAD_USERS, LATENCIES):
        of_person = sa.and_(table.c.rollout_id.in_(rollouts), table.c.user_key == subject)
        await connection.execute(sa.update(table).where(of_person).values(user_key=anonymous))


async def _add_latencies(
    connection: AsyncConnection, rollout_id: str, observations: Sequence[Observation], *, canary: bool
) -> None:
    """Add the first answer of each subject on each day (UTC): in both arms, so that both have as cold caches."""
    rows = []
    for o in observations:
        if o.counted and not o.failed and o.user_key:
            day = o.occurred_at.astimezone(UTC).date()
            rank = rank_of(rollout_id, o.user_key, day.isoformat())
            rows.append(
                {
                    "rollout_id": rollout_id, "user_key": o.user_key, "day": day, "canary": canary, "rank": rank,
                    "latency_ms": o.latency_ms,
                }
            )  # fmt: skip
    if rows:
        await connection.execute(insert(LATENCIES).on_conflict_do_nothing(), rows)


async def _latencies(connection: AsyncConnection, rollout_id: str) -> Latencies:
    of_rollout = LATENCIES.c.rollout_id == rollout_id
    counts = sa.select(sa.func.count().filter(LATENCIES.c.canary), sa.func.count().filter(~LATENCIES.c.canary))
    measured, before = (await connection.execute(counts.where(of_rollout))).one()
    rank = percentile_rank(before) if measured else None
    if rank is None:
        return Latencies(measured)
    values = sa.select(LATENCIES.c.latency_ms).where(of_rollout, ~LATENCIES.c.canary).order_by(LATENCIES.c.latency_ms)
    limit = SLOW * float((await connection.execute(values.offset(rank - 1).limit(1))).scalar_one())
    slow = sa.select(sa.func.count()).where(of_rollout, LATENCIES.c.canary, LATENCIES.c.latency_ms > limit)
    return Latencies(measured, int((await connection.execute(slow)).scalar_one()), limit)
