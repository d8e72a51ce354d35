"""What is counted of a canary, in PostgreSQL: numbers of its requests, and rows only of subjects and of a sample.

    canary_requests   a row a partition of Kafka   how many, and how many failed
    canary_users      as many as a step needs      whom each step has served
    canary_answers    at most `SAMPLED_ANSWERS`    whose answer it was that somebody complains about, and which arm's
    bad_users         a subject with a bad event   what the guards compare
    latencies         a subject and day            at most `MEASURED_REQUESTS` of the primary's, and of each day's;
                                                   infinite where the client waited for as long and left
    day_subjects      a subject and day            at most `COMPARED_SUBJECTS` of the last two days: the first answers

The functions take the ledger's connection, so that what belongs together is committed together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, timedelta
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.deployer.rollout import Rollout
from services.deployer.statistics.canary import Arms, CanaryCounts, Confidences, Latencies, Observation, rank_of
from services.deployer.statistics.guards import MEASURED_REQUESTS, SLOW, Guard, percentile_rank
from services.deployer.tables import ANSWERS, BAD_USERS, DAY_SUBJECTS, LATENCIES, REQUESTS, ROLLOUTS, SERVED

SAMPLED_ANSWERS = 10_000
"""Where there are more, complaints about the others are left out, in both arms alike, by a hash of the prediction."""
COMPARED_SUBJECTS = 10_000
"""Of each day the first so many subjects, of both arms alike, are looked at for slow answers."""


async def canary_counts(connection: AsyncConnection, rollout_id: str) -> CanaryCounts:
    """Return all that the guards of a rollout read."""
    requests = sa.select(sa.func.coalesce(sa.func.sum(REQUESTS.c.requests), 0), sa.func.sum(REQUESTS.c.failed))
    total, failed = (await connection.execute(requests.where(REQUESTS.c.rollout_id == rollout_id))).one()
    of_step = sa.and_(SERVED.c.rollout_id == rollout_id, SERVED.c.percent == ROLLOUTS.c.canary_percent)
    served = sa.select(sa.func.count()).where(of_step).correlate(ROLLOUTS).scalar_subquery()
    step = sa.select(ROLLOUTS.c.canary_percent, served).where(ROLLOUTS.c.rollout_id == rollout_id)
    percent, users = (await connection.execute(step)).first() or (0, 0)
    counts = sa.func.count().filter(BAD_USERS.c.canary), sa.func.count()
    shares = sa.select(BAD_USERS.c.guard, BAD_USERS.c.percent, *counts).where(BAD_USERS.c.rollout_id == rollout_id)
    by_share = shares.group_by(BAD_USERS.c.guard, BAD_USERS.c.percent).order_by(BAD_USERS.c.percent)
    arms = defaultdict(list)
    for name, *numbers in await connection.execute(by_share):
        arms[Guard[name]].append(Arms(*numbers))
    return CanaryCounts(
        int(total),
        int(failed or 0),
        percent,
        users,
        dict(arms),
        await _latencies(connection, rollout_id),
        await _confidences(connection, rollout_id, canary=True),
        await _confidences(connection, rollout_id, canary=False),
    )


async def add_requests(connection: AsyncConnection, rollout: Rollout, observations: Sequence[Observation]) -> None:
    """Count the canary's requests, its latencies, and the subjects with a failed or a slow request. Idempotent."""
    in_canary = [o for o in observations if o.canary and o.counted]
    limit = await _limit(connection, rollout.rollout_id)
    measured = [replace(o, latency_ms=ms) for o in observations if (ms := o.waited_ms(limit)) is not None]
    slow = await _slow_first_answers(connection, rollout.rollout_id, measured, limit)
    of_guard = [*((Guard.ERRORS, o) for o in observations if o.failed), *((Guard.LATENCY, o) for o in slow)]
    bad = [
        {
            "rollout_id": rollout.rollout_id, "guard": guard.name, "user_key": o.user_key, "canary": o.canary,
            "percent": percent,
        }
        for guard, o in of_guard if o.user_key and (percent := _share(rollout, o)) is not None
    ]  # fmt: skip
    if bad:
        await connection.execute(insert(BAD_USERS).on_conflict_do_nothing(), bad)
    await _count(connection, rollout.rollout_id, in_canary)
    answers = [o for o in observations if o.answered and (o.canary or rollout.control)]
    await _add_answers(connection, rollout, answers)
    await _add_served(connection, rollout, in_canary)
    await _add_latencies(connection, rollout.rollout_id, [o for o in measured if o.canary], canary=True)


async def add_primary(connection: AsyncConnection, rollout: Rollout, observations: Sequence[Observation]) -> None:
    """Measure the primary before the canary: a random sample of its subjects and days, as small as it may be."""
    rollout_id = rollout.rollout_id
    await _add_latencies(connection, rollout_id, [o for o in observations if o.primary and o.answered], canary=False)
    of_primary = sa.and_(LATENCIES.c.rollout_id == rollout_id, ~LATENCIES.c.canary)
    last = sa.select(LATENCIES.c.rank).where(of_primary).order_by(LATENCIES.c.rank).offset(MEASURED_REQUESTS).limit(1)
    await connection.execute(sa.delete(LATENCIES).where(of_primary, LATENCIES.c.rank >= last.scalar_subquery()))


async def add_complaint(
    connection: AsyncConnection, rollout: Rollout, guard: Guard, prediction_id: str, user_key: str | None
) -> None:
    """Count the subject of an answer that somebody found wrong, in the arm that gave it. Idempotent.

    What is no known answer of the canary counts as the primary's, which can only spare the canary; while a promotion
    has a control, whose answers are known as well, it counts nowhere. Where only a sample of the answers is known, what
    is not in the sample's part of all predictions counts nowhere, nor does an answer that was given while the canary's
    share was not known, nor any while it is not.
    """
    rollout_id = rollout.rollout_id
    if rank_of(rollout_id, prediction_id) >= await _sampled_below(connection, rollout_id):
        return
    of_answer = sa.and_(ANSWERS.c.rollout_id == rollout_id, ANSWERS.c.prediction_id == prediction_id)
    columns = ANSWERS.c.user_key, ANSWERS.c.percent, ANSWERS.c.canary
    asked = (await connection.execute(sa.select(*columns).where(of_answer))).first()
    percent = rollout.share_of_other_complaint if asked is None else rollout.share_of_complaint(asked.percent)
    if percent is None:
        return
    row = {
        "rollout_id": rollout_id, "guard": guard.name, "canary": asked is not None and asked.canary, "percent": percent,
        "user_key": (asked.user_key if asked is not None else user_key) or prediction_id,
    }  # fmt: skip
    await connection.execute(insert(BAD_USERS).on_conflict_do_nothing(), row)


async def drop_subjects(connection: AsyncConnection, rollout_id: str) -> None:
    """Delete what is known of single subjects of a rollout that has ended, but for who had a bad event.

    Who waited is deleted, too: they may be most users, and no decision is told by them afterwards.
    """
    for table in (ANSWERS, SERVED, LATENCIES, DAY_SUBJECTS):
        await connection.execute(sa.delete(table).where(table.c.rollout_id == rollout_id))
    waited = sa.and_(BAD_USERS.c.rollout_id == rollout_id, BAD_USERS.c.guard == Guard.LATENCY.name)
    await connection.execute(sa.delete(BAD_USERS).where(waited))


async def forget_subject(
    connection: AsyncConnection, rollouts: sa.ScalarSelect[str] | sa.Select[tuple[str]], subject: str
) -> None:
    """Put a random key in the place of a person's: what was counted remains."""
    anonymous = str(uuid4())  # One for all their rows: a subject's days count together.
    for table in (ANSWERS, SERVED, BAD_USERS, LATENCIES, DAY_SUBJECTS):
        of_person = sa.and_(table.c.rollout_id.in_(rollouts), table.c.user_key == subject)
        await connection.execute(sa.update(table).where(of_person).values(user_key=anonymous))


async def _count(connection: AsyncConnection, rollout_id: str, observations: Sequence[Observation]) -> None:
    """Add to the numbers of requests those whose records were not counted yet."""
    by_source: dict[str, dict[int, bool]] = defaultdict(dict)
    for o in observations:
        by_source[o.source][o.offset] = o.failed
    if not by_source:
        return
    known = sa.select(REQUESTS.c.source, REQUESTS.c.next_offset).where(REQUESTS.c.rollout_id == rollout_id)
    following = {row.source: row.next_offset for row in await connection.execute(known.with_for_update())}
    rows = []
    for source, records in sorted(by_source.items()):
        new = [failed for offset, failed in records.items() if offset >= following.get(source, 0)]
        rows.append(
            {
                "rollout_id": rollout_id, "source": source, "next_offset": max(records) + 1, "requests": len(new),
                "failed": sum(new),
            }
        )  # fmt: skip
    statement = insert(REQUESTS)
    more = statement.excluded
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[REQUESTS.c.rollout_id, REQUESTS.c.source],
            set_={
                "next_offset": sa.func.greatest(REQUESTS.c.next_offset, more.next_offset),
                "requests": REQUESTS.c.requests + more.requests, "failed": REQUESTS.c.failed + more.failed,
            },
        ),
        rows,
    )  # fmt: skip


async def _slow_first_answers(
    connection: AsyncConnection, rollout_id: str, measured: Sequence[Observation], limit: float | None
) -> list[Observation]:
    """Return the answers over the limit that are the first of their subject on their day (UTC), of either arm.

    Of those who ask often nearly everybody waits once a day, whichever arm answers: by any slow answer the arms would
    look alike. A subject and day that is there already was looked at, so records that are read again count nothing.
    """
    if limit is None:
        return []
    firsts: dict[tuple[str, date], Observation] = {}
    for o in measured:
        if o.user_key:
            firsts.setdefault((o.user_key, o.occurred_at.astimezone(UTC).date()), o)
    of_rollout = DAY_SUBJECTS.c.rollout_id == rollout_id
    days = sa.select(DAY_SUBJECTS.c.day, sa.func.count()).where(of_rollout).group_by(DAY_SUBJECTS.c.day)
    counts = {day: count for day, count in await connection.execute(days)}
    rows = [
        {"rollout_id": rollout_id, "user_key": user, "day": day}
        for user, day in firsts if counts.get(day, 0) < COMPARED_SUBJECTS
    ]  # fmt: skip
    if not rows:
        return []
    new = insert(DAY_SUBJECTS).on_conflict_do_nothing().returning(DAY_SUBJECTS.c.user_key, DAY_SUBJECTS.c.day)
    found = [firsts[user, day] for user, day in (await connection.execute(new.values(rows))).all()]
    before = max(day for _, day in firsts) - timedelta(days=1)
    await connection.execute(sa.delete(DAY_SUBJECTS).where(of_rollout, DAY_SUBJECTS.c.day < before))
    return [o for o in found if o.latency_ms > limit]


def _share(rollout: Rollout, observation: Observation) -> int | None:
    return rollout.share_of(observation.occurred_at, as_primary=observation.as_primary)


async def _add_answers(connection: AsyncConnection, rollout: Rollout, observations: Sequence[Observation]) -> None:
    """Add to the sample the answers with the smallest ranks, and drop those that are beyond its size by now."""
    rollout_id = rollout.rollout_id
    limit = await _sampled_below(connection, rollout_id)
    rows = [
        {
            "rollout_id": rollout_id, "prediction_id": o.prediction_id, "user_key": o.user_key, "rank": rank,
            "percent": _share(rollout, o), "canary": o.canary,
        }
        for o in observations if (rank := rank_of(rollout_id, o.prediction_id)) < limit
    ]  # fmt: skip
    if not rows:
        return
    await connection.execute(insert(ANSWERS).on_conflict_do_nothing(), rows)
    of_rollout = ANSWERS.c.rollout_id == rollout_id
    last = sa.select(ANSWERS.c.rank).where(of_rollout).order_by(ANSWERS.c.rank).offset(SAMPLED_ANSWERS).limit(1)
    await connection.execute(sa.delete(ANSWERS).where(of_rollout, ANSWERS.c.rank >= last.scalar_subquery()))


async def _sampled_below(connection: AsyncConnection, rollout_id: str) -> float:
    """Return the rank from which on predictions are not in the sample; infinite while every answer is."""
    ranks = sa.select(ANSWERS.c.rank).where(ANSWERS.c.rollout_id == rollout_id).order_by(ANSWERS.c.rank)
    last = (await connection.execute(ranks.offset(SAMPLED_ANSWERS - 1).limit(1))).scalar()
    return float("inf") if last is None else last + 1


async def _add_served(connection: AsyncConnection, rollout: Rollout, observations: Sequence[Observation]) -> None:
    """Add subjects whom the present step has served, as long as it needs more. One that waits has served nobody."""
    step = rollout.standing
    since = step.step_since or step.stage_since
    users = {o.served for o in observations if o.served and o.occurred_at >= since}
    of_step = sa.and_(SERVED.c.rollout_id == rollout.rollout_id, SERVED.c.percent == step.canary_percent)
    known = set((await connection.execute(sa.select(SERVED.c.user_key).where(of_step))).scalars()) if users else set()
    room = max(0, rollout.spec.rollout.min_canary_users - len(known))
    rows = [
        {"rollout_id": rollout.rollout_id, "percent": step.canary_percent, "user_key": user}
        for user in sorted(users - known)[:room]
    ]
    if rows:
        await connection.execute(insert(SERVED).on_conflict_do_nothing(), rows)


async def _add_latencies(
    connection: AsyncConnection, rollout_id: str, observations: Sequence[Observation], *, canary: bool
) -> None:
    """Add the first answer of each subject on each day (UTC): in both arms, so that both have as cold caches."""
    rows = []
    for o in observations:
        if o.user_key:
            day = o.occurred_at.astimezone(UTC).date()
            rank = rank_of(rollout_id, o.user_key, day.isoformat())
            rows.append(
                {
                    "rollout_id": rollout_id, "user_key": o.user_key, "day": day, "canary": canary, "rank": rank,
                    "latency_ms": o.latency_ms, "confidence": o.confidence,
                }
            )  # fmt: skip
    if canary:
        days = sa.select(LATENCIES.c.day, sa.func.count()).where(
            LATENCIES.c.rollout_id == rollout_id, LATENCIES.c.canary
        )
        full = {
            day for day, count in await connection.execute(days.group_by(LATENCIES.c.day)) if count >= MEASURED_REQUESTS
        }
        rows = [row for row in rows if row["day"] not in full]
    if rows:
        await connection.execute(insert(LATENCIES).on_conflict_do_nothing(), rows)


async def _latencies(connection: AsyncConnection, rollout_id: str) -> Latencies:
    of_canary = sa.and_(LATENCIES.c.rollout_id == rollout_id, LATENCIES.c.canary)
    measured = (await connection.execute(sa.select(sa.func.count()).where(of_canary))).scalar_one()
    limit = await _limit(connection, rollout_id) if measured else None
    if limit is None:
        return Latencies(measured)
    first_slow = sa.func.min(LATENCIES.c.day).filter(LATENCIES.c.latency_ms > limit).label("first_slow")
    subjects = sa.select(LATENCIES.c.user_key, first_slow).where(of_canary).group_by(LATENCIES.c.user_key).subquery()
    until_slow = sa.or_(subjects.c.first_slow.is_(None), LATENCIES.c.day <= subjects.c.first_slow)
    days = sa.select(
        sa.func.count(), sa.func.count(sa.distinct(LATENCIES.c.user_key)).filter(subjects.c.first_slow.is_not(None))
    )
    counted = days.join_from(LATENCIES, subjects, LATENCIES.c.user_key == subjects.c.user_key)
    measured, slow = (await connection.execute(counted.where(of_canary, until_slow))).one()
    return Latencies(measured, slow, limit)


async def _limit(connection: AsyncConnection, rollout_id: str) -> float | None:
    """Return how long an answer may take, in ms, by the primary's before the canary; None: they were too few."""
    of_primary = sa.and_(LATENCIES.c.rollout_id == rollout_id, ~LATENCIES.c.canary)
    before = (await connection.execute(sa.select(sa.func.count()).where(of_primary))).scalar_one()
    if (rank := percentile_rank(before)) is None:
        return None
    values = sa.select(LATENCIES.c.latency_ms).where(of_primary).order_by(LATENCIES.c.latency_ms)
    at_rank = (await connection.execute(values.offset(rank - 1).limit(1))).scalar_one_or_none()
    return None if at_rank is None else SLOW * float(at_rank)  # None: the rollout ended since they were counted.


async def _confidences(connection: AsyncConnection, rollout_id: str, *, canary: bool) -> Confidences:
    value = LATENCIES.c.confidence
    figures = sa.select(
        sa.func.count(value), sa.func.coalesce(sa.func.avg(value), 0), sa.func.coalesce(sa.func.var_pop(value), 0)
    )
    of_arm = figures.where(LATENCIES.c.rollout_id == rollout_id, LATENCIES.c.canary.is_(canary))
    count, mean, variance = (await connection.execute(of_arm)).one()
    return Confidences(count, round(float(mean), 9), round(float(variance), 9))
