"""Hard negatives: rows of a failure mode with another label than most of it, alike and not the same. Pure.

They count twice where the task asks for it, and each says so. No text is made up, and the evaluation set stays as it
is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from schemas.datasets import Example, Origin

HARD_NEGATIVE_WEIGHT = 2.0


def weigh_hard_negatives(train: Sequence[Example]) -> list[Example]:
    """Mark the rows of a failure mode whose label is not its commonest one; of labels that tie, none is."""
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        if example.mode_id is not None:
            labels[example.mode_id][example.answer] += 1
    usual = {mode: _commonest(counts) for mode, counts in labels.items()}
    return [
        example.model_copy(update={"origin": Origin.HARD_NEGATIVE, "weight": example.weight * HARD_NEGATIVE_WEIGHT})
        if example.origin is Origin.REVIEWER
        and example.mode_id is not None
        and usual[example.mode_id] not in (None, example.answer)
        else example
        for example in train
    ]


def _commonest(counts: Counter[str]) -> str | None:
    (label, most), *others = counts.most_common(2)
    return None if others and others[0][1] == most else label
