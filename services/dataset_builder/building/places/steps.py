"""The steps that need to know which rows are alike, in their order. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from schemas.conversation import Message, input_text
from schemas.datasets import Fate
from schemas.tasks import TaskSpec
from services.dataset_builder.building.places.duplicates import resolve_copies
from services.dataset_builder.building.places.frozen import exclude_frozen
from services.dataset_builder.building.places.place import Places
from services.dataset_builder.building.places.placement import Placed, place_rows
from services.dataset_builder.building.places.similar import SimilarRows
from services.dataset_builder.building.rows import BY_AGE, Row
from shared.model.question_sketches import QuestionSketches
from shared.model.texts import text_hash


def place(
    rows: Sequence[Row],
    places: Places,
    frozen: Sequence[tuple[Message, ...]],
    spec: TaskSpec,
    prompts: frozenset[str] = frozenset(),
    others: Sequence[Row] = (),
    sketches: QuestionSketches | None = None,
) -> tuple[Placed, SimilarRows]:
    """Place rows, given the places of earlier builds and the questions of frozen sets. Their order is no matter.

    `prompts`: the system prompts that the task has or had. `others`: rows with a place that this build leaves out.
    `sketches`: see `SimilarRows`.

    Returns also which rows are alike, which is large, and is needed until the rows are examples.
    """
    rows = sorted(rows, key=BY_AGE)
    held_out = {name for name, place in places.items() if place.fate is Fate.EVAL}
    similar = SimilarRows(rows, spec, places, frozen, prompts, others, sketches)
    texts = {text_hash(input_text(question, prompts)) for question in frozen}
    unfrozen, excluded = exclude_frozen(rows, similar, texts)
    resolved, conflicting, questions = resolve_copies(unfrozen, held_out, similar, spec)
    placed = place_rows(resolved, places, similar, spec, [*others, *_without(rows, resolved)])
    left_out = [*excluded, *conflicting, *placed.left_out]
    return replace(placed, left_out=left_out, questions=tuple(questions)), similar


def _without(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Return the rows that are not among the others."""
    names = {row.prediction_id for row in others}
    return [row for row in rows if row.prediction_id not in names]
