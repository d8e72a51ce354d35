"""Stores a cycle's failure modes and its event, which loses quotations of erased people. Parts of a transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.failures import FailuresClustered
from services.failure_miner.domain import Suspect
from services.failure_miner.modes import FoundMode
from services.failure_miner.tables import CLUSTERINGS, FORGOTTEN, MODES, SUSPECTS, is_one_of
from shared.privacy.erasure import ErasedSubjects, erased_among


async def save_clustering(
    connection: AsyncConnection, event: FailuresClustered, suspects: Sequence[Suspect], found: Sequence[FoundMode]
) -> FailuresClustered:
    """Store a cycle's event, its suspects as taken, and its modes; returns the event without erased people."""
    mode_of = {suspects[i].prediction_id: mode.mode.mode_id for mode in found for i in mode.members}
    groups: dict[str | None, list[str]] = {}
    for suspect in suspects:
        groups.setdefault(mode_of.get(suspect.prediction_id), []).append(suspect.prediction_id)
    quoted = {(event.task, source.user_hash) for mode in event.modes for source in mode.sources}
    event = without_erased(event, await erased_among(connection, FORGOTTEN, quoted))
    for mode_id, members in groups.items():
        await connection.execute(
            sa.update(SUSPECTS)
            .where(is_one_of(SUSPECTS.c.prediction_id, members))
            .values(cycle_id=event.cycle_id, mode_id=mode_id)
        )
    for mode in found:
        await connection.execute(_upsert_mode(event, mode))
    row = {"cycle_id": event.cycle_id, "task": event.task, "event": event.model_dump_json()}
    await connection.execute(insert(CLUSTERINGS).values(row).on_conflict_do_nothing())
    return event


async def rewrite(
    connection: AsyncConnection,
    task: str,
    change: Callable[[FailuresClustered], FailuresClustered],
    condition: sa.ColumnElement[bool] | None = None,
) -> None:
    """Apply `change` to the task's stored clusterings, or to those that meet the condition."""
    query = sa.select(CLUSTERINGS).where(CLUSTERINGS.c.task == task, sa.true() if condition is None else condition)
    for row in (await connection.execute(query)).all():
        before = FailuresClustered.model_validate_json(row.event)
        if (after := change(before)) != before:
            has_id = CLUSTERINGS.c.cycle_id == row.cycle_id
            await connection.execute(sa.update(CLUSTERINGS).where(has_id).values(event=after.model_dump_json()))


def without_erased(event: FailuresClustered, erased: ErasedSubjects) -> FailuresClustered:
    """Return the event without the exemplars of erased people."""
    return event.without(lambda source: erased.covers(event.task, source.user_hash, source.predicted_at))


def _upsert_mode(event: FailuresClustered, found: FoundMode) -> Any:
    latest = {"name": found.mode.name, "centroid": found.centroid.tobytes(), "last_cycle": event.cycle_id}
    statement = insert(MODES).values(
        mode_id=found.mode.mode_id,
        task=event.task,
        task_revision=event.task_revision,
        first_cycle=event.cycle_id,
        **latest,
    )
    return statement.on_conflict_do_update(index_elements=["mode_id"], set_=latest)
