"""The places of rows in PostgreSQL: decided once, and read by every later build.

An unseen held-out row has its fingerprint, which outlives its corrections (`max_age_days`), so that nothing like it is
ever trained on. Whoever asks to be forgotten takes it along.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.datasets import Fate, Origin
from services.dataset_builder.building.places import Place
from services.dataset_builder.tables import CORRECTIONS, FORGOTTEN, PLACES
from shared.privacy.erasure import ErasedSubjects, erased_among

_AT_ONCE = 2_000
_FATES = {fate.value: fate for fate in Fate}


async def read_places(connection: AsyncConnection, task: str) -> dict[str, Place]:
    """Return the task's places by prediction, sorted."""
    columns = PLACES.c
    query = sa.select(
        columns.prediction_id, columns.fate, columns.group, columns.user_hash, columns.happened_at, columns.fingerprint
    ).where(columns.task == task)
    found: dict[str, Place] = {}
    result = await connection.stream(query, execution_options={"yield_per": _AT_ONCE})
    async for rows in result.partitions():
        found.update((prediction_id, Place(_FATES[fate], *place)) for prediction_id, fate, *place in rows)
    return dict(sorted(found.items()))  # Databases sort texts differently.


async def save_places(
    connection: AsyncConnection, task: str, cycle_id: str | None, places: Mapping[str, Place]
) -> None:
    """Store places that were decided; the first one of a row stays. None of who was erased meanwhile."""
    people = {(task, person) for place in places.values() for person in (place.user_hash, *dict(place.writers))}
    erased = await erased_among(connection, FORGOTTEN, people)
    names = sorted(without_erased(task, places, erased))
    for start in range(0, len(names), _AT_ONCE):  # Parameters of all at once would be 30 MB of a large task.
        rows = [_row(task, cycle_id, name, places[name]) for name in names[start : start + _AT_ONCE]]
        await connection.execute(insert(PLACES).on_conflict_do_nothing(), rows)


def _row(task: str, cycle_id: str | None, name: str, place: Place) -> dict[str, Any]:
    return {
        "task": task, "prediction_id": name, "fate": place.fate.value, "group": place.group,
        "user_hash": place.user_hash, "happened_at": place.happened_at, "fingerprint": place.fingerprint,
        "cycle_id": cycle_id,
    }  # fmt: skip


def without_erased(task: str, places: Mapping[str, Place], erased: ErasedSubjects) -> list[str]:
    """Return the predictions of nobody who is erased, but those that only erased people corrected."""

    def is_erased(place: Place) -> bool:
        by_erased = [erased.covers(task, person, at) for person, at in place.writers]
        return erased.covers(task, place.user_hash, place.happened_at) or (bool(by_erased) and all(by_erased))

    return [name for name, place in places.items() if not is_erased(place)]


async def forget_places(connection: AsyncConnection, task: str, person: str, until: datetime) -> None:
    """Delete the places of a person's predictions made until then, and of those that only the person corrected.

    Call it before their corrections are deleted.
    """
    of_task = PLACES.c.task == task
    theirs = sa.and_(PLACES.c.user_hash == person, PLACES.c.happened_at <= until)
    by_user = CORRECTIONS.c.origin == Origin.USER.value  # What a reviewer took of them stands for the place.
    by_person = sa.and_(by_user, CORRECTIONS.c.author_hash == person, CORRECTIONS.c.given_at <= until)
    written = sa.select(CORRECTIONS.c.prediction_id).where(CORRECTIONS.c.task == task, by_person)
    by_others = sa.select(CORRECTIONS.c.prediction_id).where(
        CORRECTIONS.c.task == task, sa.not_(sa.func.coalesce(by_person, sa.false()))
    )
    only_theirs = sa.and_(PLACES.c.prediction_id.in_(written), PLACES.c.prediction_id.not_in(by_others))
    await connection.execute(sa.delete(PLACES).where(of_task, theirs | only_theirs))
