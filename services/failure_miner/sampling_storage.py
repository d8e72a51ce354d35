"""Stores the rates and counts of each day's samples, and which questions were drawn. Parts of a transaction."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date, datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.labels import Purpose
from schemas.task_settings import FailureSettings
from services.failure_miner.sampling import (
    AUDIT,
    DayOfQuestions,
    ReviewQuestion,
    Sighting,
    Sightings,
    Stratum,
    plan_rates,
)
from services.failure_miner.tables import ASKED, FORGOTTEN, SAMPLING, is_one_of
from shared.privacy.erasure import erased_among

logger = logging.getLogger(__name__)


async def draw_questions(connection: AsyncConnection, seen: Sightings) -> list[ReviewQuestion]:
    """Draw which predictions people are asked about, none of an erased person. Returns the questions, earlier ones too.

    A redelivered prediction has its earlier questions. If it has none, it gets none: its point is the same, and rates
    only fall within a day. (Where the process was restarted in between, it is counted as seen twice, which makes
    tomorrow's plan a little more careful.)
    """
    erased = await erased_among(connection, FORGOTTEN, ((s.task, s.user_hash) for s in seen.sightings))
    left = [s for s in seen.sightings if not erased.covers(s.task, s.user_hash, s.occurred_at)]
    questions: list[ReviewQuestion] = []
    for task in sorted({sighting.task for sighting in left}):
        # Two processes must not spend the same budget.
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(f"asked {task}"))))
        of_task = [sighting for sighting in left if sighting.task == task]
        earlier = await _earlier_questions(connection, [sighting.prediction_id for sighting in of_task])
        rules = seen.rules[task]
        today = DayOfQuestions(await _strata(connection, task, seen.day, rules), rules)
        refused = _refused(today)
        drawn = list(_draw(of_task, earlier, today))
        if (count := _refused(today) - refused) > 0:
            logger.warning("the review budget of %s is spent for today: %d questions are not asked", task, count)
        await _save(connection, task, seen.day, today.strata, drawn)
        questions += [question for asked in earlier.values() for question in asked]
        questions += [question for _, question in drawn]
    return questions


def _draw(
    sightings: Iterable[Sighting], earlier: Mapping[str, Sequence[ReviewQuestion]], today: DayOfQuestions
) -> Iterable[tuple[Sighting, ReviewQuestion]]:
    for sighting in sightings:
        asked = earlier.get(sighting.prediction_id, ())
        if not sighting.is_new or any(question.purpose is Purpose.AUDIT for question in asked):
            continue
        # A complaint may be read before its prediction is. It is asked about once; the audit alone may ask again.
        drawn = today.draw(replace(sighting, stratum=None) if asked else sighting)
        if drawn is not None:
            yield sighting, drawn


async def sample_figures(
    connection: AsyncConnection, task: str, until: datetime, since: datetime | None
) -> tuple[dict[Purpose, int], float]:
    """Return how many of a task's predictions of this time chance drew for each purpose, and the audit's latest rate.

    `since`: None for all before `until`.
    """
    is_drawn = sa.and_(ASKED.c.task == task, ASKED.c.predicted_at <= until, ASKED.c.drawn_probability.is_not(None))
    if since is not None:
        is_drawn &= ASKED.c.predicted_at >= since
    counts = sa.select(ASKED.c.purpose, sa.func.count()).where(is_drawn).group_by(ASKED.c.purpose)
    rate = (
        sa.select(SAMPLING.c.rate)
        .where(SAMPLING.c.task == task, SAMPLING.c.stratum == AUDIT)
        .order_by(SAMPLING.c.day.desc())
        .limit(1)
    )
    drawn = {Purpose(purpose): count for purpose, count in await connection.execute(counts)}
    return dict(sorted(drawn.items())), (await connection.execute(rate)).scalar_one_or_none() or 0.0


async def _earlier_questions(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, list[ReviewQuestion]]:
    rows = await connection.execute(sa.select(ASKED).where(is_one_of(ASKED.c.prediction_id, ids)))
    found: dict[str, list[ReviewQuestion]] = {}
    for row in rows:
        question = ReviewQuestion(row.prediction_id, Purpose(row.purpose), row.probability, row.drawn_probability)
        found.setdefault(row.prediction_id, []).append(question)
    return found


async def _strata(connection: AsyncConnection, task: str, day: date, rules: FailureSettings) -> dict[str, Stratum]:
    """Return the task's strata of a day; on its first prediction, with rates planned from the latest day before."""
    of_task = SAMPLING.c.task == task
    today = await connection.execute(sa.select(SAMPLING).where(of_task, SAMPLING.c.day == day))
    strata = {row.stratum: Stratum(row.rate, row.seen, row.asked, row.refused) for row in today}
    if strata:
        return strata
    before = sa.select(sa.func.max(SAMPLING.c.day)).where(of_task, SAMPLING.c.day < day).scalar_subquery()
    rows = await connection.execute(sa.select(SAMPLING).where(of_task, SAMPLING.c.day == before))
    rates = plan_rates(rules, {row.stratum: row.seen for row in rows})
    return {stratum: Stratum(rate) for stratum, rate in rates.items()}


async def _save(
    connection: AsyncConnection,
    task: str,
    day: date,
    strata: Mapping[str, Stratum],
    drawn: Sequence[tuple[Sighting, ReviewQuestion]],
) -> None:
    rows = [{"task": task, "day": day, "stratum": name, **asdict(stratum)} for name, stratum in strata.items()]
    statement = insert(SAMPLING)
    counts = {name: statement.excluded[name] for name in ("seen", "asked", "refused")}
    await connection.execute(
        statement.on_conflict_do_update(index_elements=["task", "day", "stratum"], set_=counts), rows
    )
    asked = [
        {
            "prediction_id": question.prediction_id, "purpose": question.purpose.value,
            "probability": question.inclusion_probability, "drawn_probability": question.drawn_probability,
            "task": task, "task_revision": sighting.task_revision, "predicted_at": sighting.occurred_at,
            "user_hash": sighting.user_hash,
        }
        for sighting, question in drawn
    ]  # fmt: skip
    if asked:
        await connection.execute(insert(ASKED).on_conflict_do_nothing(), asked)


def _refused(today: DayOfQuestions) -> int:
    return sum(stratum.refused for stratum in today.strata.values())
