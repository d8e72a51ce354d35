"""The questions of frozen sets (golden, adversarial): no row of a version is one of them, or nearly. Pure.

A row that such a question excludes keeps the place it has, and a new one gets none: whoever takes the question out of
the set has the row back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from schemas.conversation import Message, Role
from schemas.datasets import Fate, LeftOutExample
from schemas.tasks import TaskSpec
from services.dataset_builder.building.places.similar import SimilarRows
from services.dataset_builder.building.rows import Row

IN_FROZEN_SET = "in_frozen_set"


def exclude_frozen(
    rows: Sequence[Row], similar: SimilarRows, texts: Collection[str]
) -> tuple[list[Row], list[LeftOutExample]]:
    """Return the rows that are not like a frozen question, and those that are. `texts`: hashes of all of its text."""
    near = set(similar.near_any(rows, similar.frozen)) if similar.frozen.any() else set()
    near.update(row.prediction_id for row in rows if row.text_hash in texts)
    detail = "a question of the golden or the adversarial set, or nearly one"
    return (
        [row for row in rows if row.prediction_id not in near],
        [row.left_out(Fate.EXCLUDED, IN_FROZEN_SET, detail) for row in rows if row.prediction_id in near],
    )


def adversarial_questions(spec: TaskSpec) -> list[tuple[Message, ...]]:
    """Return the texts that the task's settings add to the adversarial set, an injection with every label it may ask
    for. The rest of that set is made from held-out rows, and near-copies of those are in no training set anyway."""
    settings = spec.evaluation.adversarial
    texts = [text.replace("{target}", label) for text in settings.injections for label in spec.labels or ("",)]
    unique = dict.fromkeys((*texts, *settings.out_of_distribution))
    return [(Message(role=Role.USER, content=text),) for text in unique]
