"""Simulated arms: what candidate and production answer, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.conversation import Message, Role
from schemas.tasks import TaskSpec
from services.evaluator.comparison import Comparison
from services.evaluator.domain import GradedAnswers, PastResult, Question, golden_key
from services.evaluator.statistics.intervals import Floats
from shared.answers import answer_form

LABELS = tuple(f"intent {number}" for number in range(10))
MODES = 4
ROWS, FEW = 400, 80
GOLDEN_ROWS = 400
PAST = 12
"""Adapters that were promoted before: a quarter's, with the same churn."""
SPEC = TaskSpec.model_validate({"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": LABELS})


@dataclass(frozen=True)
class Truth:
    """How often production is right, and the shares of rows on which the candidate alone is, or production alone."""

    accuracy: float
    gains: float
    losses: float
    golden_churn: float = 0.04
    """Share of the golden rows of which one of two adapters is right and the other is not, half of them each."""


EQUAL = Truth(accuracy=0.85, gains=0.045, losses=0.045)
GOOD = Truth(accuracy=0.85, gains=0.07, losses=0.02)


def questions(count: int, chance: np.random.Generator, golden: bool = False) -> list[Question]:
    """Return questions of random labels, failure modes and lengths."""
    labels, modes = chance.integers(len(LABELS), size=count), chance.integers(MODES, size=count)
    lengths = chance.integers(10, 200, size=count)
    return [
        Question(
            (Message(role=Role.USER, content="x" * int(length)),),
            LABELS[label],
            slices=() if golden else (f"failure mode m{mode}",),
            row_id=f"g-{number}" if golden else "",
        )
        for number, (label, mode, length) in enumerate(zip(labels, modes, lengths, strict=True))
    ]


def graded(asked: list[Question], right: Floats, chance: np.random.Generator, spec: TaskSpec = SPEC) -> GradedAnswers:
    """Answer rightly where `right` is 1, and with another label elsewhere."""
    other = chance.integers(1, len(LABELS), size=len(asked))
    answers = tuple(
        q.answer if r else LABELS[(LABELS.index(q.answer) + int(o)) % len(LABELS)]
        for q, r, o in zip(asked, right, other, strict=True)
    )
    return GradedAnswers(
        answers, tuple(answer_form(spec).grade(q.answer, a) for q, a in zip(asked, answers, strict=True))
    )


def confidence(right: Floats, chance: np.random.Generator, told: float = 2.0) -> Floats:
    """Return scores whose log-odds are higher for right answers by `told` deviations."""
    return np.asarray(1.0 / (1.0 + np.exp(-(told * right + chance.normal(size=len(right))))), dtype=np.float64)


def changed(right: Floats, gains: float, losses: float, chance: np.random.Generator) -> Floats:
    """Return another arm's rights: of the shares of all rows that it gains and loses against `right`."""
    share = right.mean()
    point = chance.random(len(right))
    flips = np.where(right > 0, point < losses / max(share, 1e-9), point < gains / max(1.0 - share, 1e-9))
    return np.where(flips, 1.0 - right, right)


def compared(
    asked: list[Question], candidate: Floats, production: Floats, chance: np.random.Generator, told: float = 2.0
) -> Comparison:
    """Return the comparison of two arms that are right on these rows. `told`: by the candidate's confidence."""
    return Comparison(
        asked,
        graded(asked, candidate, chance),
        graded(asked, production, chance),
        confidence(candidate, chance, told),
        confidence(production, chance),
    )


def evaluation_set(truth: Truth, chance: np.random.Generator, rows: int = ROWS) -> Comparison:
    """Return both arms on an evaluation set."""
    asked = questions(rows, chance)
    point = chance.random(rows)
    # Expected shares, not those of the sample: the arms are equal in truth, not on these rows.
    production = (chance.random(rows) < truth.accuracy).astype(np.float64)
    lost = (production > 0) & (point < truth.losses / truth.accuracy)
    gained = (production == 0) & (point < truth.gains / (1.0 - truth.accuracy))
    return compared(asked, np.where(lost | gained, 1.0 - production, production), production, chance)


def golden_set(truth: Truth, chance: np.random.Generator) -> tuple[Comparison, list[PastResult]]:
    """Return both arms on a golden set, and what a quarter's promoted adapters got right of it."""
    asked = questions(GOLDEN_ROWS, chance, golden=True)
    stable = (chance.random(GOLDEN_ROWS) < 0.92).astype(np.float64)
    quarter = truth.golden_churn / 4.0  # Each differs from what is stable by half of what two of them do.
    arms = [changed(stable, quarter, quarter, chance) for _ in range(PAST + 2)]
    keys = [golden_key(question, SPEC) for question in asked]
    past = [
        PastResult(f"desk-{number}", dict(zip(keys, (right > 0).tolist(), strict=True)))
        for number, right in enumerate(arms[2:])
    ]
    candidate, production = (graded(asked, right, chance) for right in arms[:2])
    return Comparison(asked, candidate, production), past
