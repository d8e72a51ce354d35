"""Honest users' edits are trained on, and neither a user nor an unnamed key floods a class.

Beside reviewers' labels of answers of which nine in ten are right come 200 edits of wrong answers. All of them are
right, so that only the number that one author gives tells a flood from the others.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from schemas.conversation import Answer
from services.dataset_builder.building.votes import UserCorrection, votes_of
from services.dataset_builder.pipeline import Dataset, Inputs, build_dataset
from tests.benchmarks.dataset.made import LABELS, SPEC, START, audit, call, sentence
from tests.benchmarks.table import Grid, Measured

REVIEWED, EDITS = 800, 200
_RIGHT = 0.9
"""Of production's answers that reviewers see."""
_EDIT = "edit-"
Author = Callable[[int], str | None]


def measure(reviewed: int = REVIEWED, edits: int = EDITS) -> tuple[list[Measured], list[Grid]]:
    """Return what becomes of the edits of many users, of one, and of nobody in particular."""
    honest = _trained(_built(reviewed, edits, lambda number: f"writer-{number}"))
    named, unnamed = (_built(reviewed, edits, author) for author in (lambda number: "eve", lambda number: None))
    return [
        Measured(f"{edits} users with an edit each: trained on", "share", honest / edits, min_value=0.9),
        Measured(f"{edits} edits of one user: of a class, at most", "share", _largest(named), max_value=0.05),
        Measured(f"{edits} edits of one key, no user: of a class, at most", "share", _largest(unnamed), max_value=0.05),
    ], []


def _built(reviewed: int, edits: int, author: Author) -> Dataset:
    chance = random.Random(20)
    labels = [
        audit(number, f"p{number}", call(sentence(number)), truth, app="shop", answers=(_answer(truth, is_right),))
        for number in range(reviewed)
        for truth, is_right in [(chance.choice(LABELS), chance.random() < _RIGHT)]
    ]
    words = [_edit(number, author(number), chance.choice(LABELS)) for number in range(edits)]
    return build_dataset(Inputs(votes_of(labels, words), SPEC)).dataset


def _edit(number: int, author: str | None, truth: str) -> UserCorrection:
    return UserCorrection(
        correction_id=f"feedback-{number}", task=SPEC.name, task_revision=SPEC.revision,
        prediction_id=f"{_EDIT}{number}", occurred_at=START, call=call(sentence(100_000 + number)), label=truth,
        answers=(_answer(truth, False),), author_hash=author, user_hash=author, predicted_at=START, app="shop",
    )  # fmt: skip


def _answer(truth: str, is_right: bool) -> Answer:
    return Answer(text=truth if is_right else LABELS[LABELS.index(truth) - 1])


def _trained(dataset: Dataset) -> int:
    return sum(row.prediction_ids[0].startswith(_EDIT) for row in dataset.train)


def _largest(dataset: Dataset) -> float:
    """Return the largest share that the edits have of a label's rows."""
    rows = Counter(row.answer for row in dataset.train)
    edits = Counter(row.answer for row in dataset.train if row.prediction_ids[0].startswith(_EDIT))
    return max(edits[label] / rows[label] for label in rows)
