"""The gate of an extraction's fields: none may be shown to be worse, however much better the others are. Pure."""

from __future__ import annotations

import numpy as np

from schemas.base import Gate
from services.evaluator.comparison import Comparison
from services.evaluator.domain import GradedAnswers
from services.evaluator.statistics.intervals import Floats
from services.evaluator.statistics.paired import holm, p_worse
from shared.grading.fields import fields_f1

FIELDS = 0.005
"""A candidate that is as good as production is stopped so often, at most."""
_MAX_NAMED = 5


def fields_not_worse(evaluation: Comparison) -> Gate | None:
    """Compare each field's F1 by row, paired, all of them together at one level; None without fields."""
    ours, theirs = _by_field(evaluation.candidate), _by_field(evaluation.production)
    names = sorted(ours.keys() | theirs.keys())
    if not names:
        return None
    nothing = np.ones(len(evaluation.questions))  # A row without the field is right about it.
    apart = {name: ours.get(name, nothing) - theirs.get(name, nothing) for name in names}
    adjusted = holm([p_worse(apart[name], evaluation.groups) for name in names])
    worse = [name for p, name in sorted(zip(adjusted, names, strict=True)) if p < FIELDS]
    shown = "; ".join(
        f"{name[:120]}: {_mean(theirs.get(name, nothing))} → {_mean(ours.get(name, nothing))}"
        for name in worse[:_MAX_NAMED]
    )
    more = f" and {len(worse) - _MAX_NAMED} more" if len(worse) > _MAX_NAMED else ""
    return Gate(
        name="fields_not_worse",
        passed=not worse,
        measured=min(adjusted),
        required=f"p >= {FIELDS} for every field (paired, Holm)",
        detail=f"{len(names)} fields of {len(evaluation.questions)} rows. Worse, by mean F1: {shown or 'none'}{more}.",
    )


def _by_field(arm: GradedAnswers) -> dict[str, Floats]:
    """Return each field's F1 by row."""
    found: dict[str, Floats] = {}
    for row, grade in enumerate(arm.grades):
        for field in grade.fields:
            found.setdefault(field.path, np.ones(len(arm.grades)))[row] = fields_f1([field])
    return found


def _mean(scores: Floats) -> str:
    return f"{float(scores.mean()):.0%}"
