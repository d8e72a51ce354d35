"""The noise model's scores in PostgreSQL: decisions of builds, which later builds start from.

A score has no person's name or text, only a prediction's id. It goes with the corrections of its prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from sys import intern
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.dataset_builder.checks.label_noise import LabelScore, ScoreKey
from services.dataset_builder.tables import CORRECTIONS, LABEL_SCORES

_AT_ONCE = 2_000
_INSERT = insert(LABEL_SCORES)
_UPSERT = _INSERT.on_conflict_do_update(
    index_elements=list(LABEL_SCORES.primary_key.columns),
    set_={column.name: _INSERT.excluded[column.name] for column in LABEL_SCORES.columns if not column.primary_key},
)


async def read_scores(connection: AsyncConnection, task: str) -> dict[ScoreKey, LabelScore]:
    """Return the task's scores by prediction and label."""
    columns = LABEL_SCORES.c
    query = sa.select(
        columns.prediction_id, columns.label, columns.given, columns.rival, columns.rival_probability,
        columns.is_issue, columns.rows,
    ).where(columns.task == task)  # fmt: skip
    found: dict[ScoreKey, LabelScore] = {}
    result = await connection.stream(query, execution_options={"yield_per": _AT_ONCE})
    async for rows in result.partitions():
        for prediction_id, label, given, rival, *rest in rows:  # Labels are few, and each row has its own two.
            found[prediction_id, intern(label)] = LabelScore(given, intern(rival), *rest)
    return found


async def save_scores(connection: AsyncConnection, task: str, scores: Mapping[ScoreKey, LabelScore]) -> None:
    """Store new and changed scores, but none of a prediction whose corrections were erased meanwhile."""
    keys = sorted(scores)
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        ids = {prediction_id for prediction_id, _ in part}
        is_present = sa.and_(CORRECTIONS.c.task == task, CORRECTIONS.c.prediction_id.in_(ids))
        present = set((await connection.execute(sa.select(CORRECTIONS.c.prediction_id).where(is_present))).scalars())
        rows = [_row(task, key, scores[key]) for key in part if key[0] in present]
        if rows:
            await connection.execute(_UPSERT, rows)


async def delete_scores(connection: AsyncConnection, predictions: sa.Select[Any]) -> None:
    """Delete the scores of the selected (task, prediction): applications give predictions ids of their own, too."""
    key = sa.tuple_(LABEL_SCORES.c.task, LABEL_SCORES.c.prediction_id)
    await connection.execute(sa.delete(LABEL_SCORES).where(key.in_(predictions)))


def _row(task: str, key: ScoreKey, score: LabelScore) -> dict[str, Any]:
    prediction_id, label = key
    return {
        "task": task, "prediction_id": prediction_id, "label": label, "given": score.given, "rival": score.rival,
        "rival_probability": score.rival_probability, "is_issue": score.is_issue, "rows": score.rows,
    }  # fmt: skip
