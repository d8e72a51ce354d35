"""Both arms on each part of the evaluation set that is looked at by itself. Pure."""

from __future__ import annotations

import numpy as np

from schemas.evaluation import PartKind, PartScore
from schemas.tasks import TaskSpec
from services.evaluator.comparison import Comparison
from services.evaluator.gates import PARTS
from services.evaluator.parts.judged import judge_parts
from services.evaluator.rivals.table import mean_difference
from services.evaluator.statistics.intervals import mean_interval

_PREFIXES: dict[str, PartKind] = {
    "class ": "class", "failure mode ": "failure_mode", "app ": "app", "language ": "language", "field ": "field",
    "function ": "function", "argument ": "argument", "label ": "label",
}  # fmt: skip
_MAX_PARTS = 2_000


def part_scores(evaluation: Comparison, spec: TaskSpec) -> tuple[PartScore, ...]:
    """Return the parts, those where the candidate is shown to be worse first, then the largest."""
    parts = evaluation.parts(spec)
    if not parts:
        return ()
    judged = judge_parts(evaluation.groups, parts, PARTS)
    worse = set(judged.worse)
    scores = []
    for name in sorted(parts, key=lambda name: (name not in worse, -len(parts[name].rows), name))[:_MAX_PARTS]:
        part = parts[name]
        groups = np.unique(evaluation.groups[part.rows], return_inverse=True)[1]
        part_kind, short = _kind_of(name)
        scores.append(
            PartScore(
                kind=part_kind,
                name=short[:500] or "(empty)",
                rows=len(part.rows),
                candidate=mean_interval(part.candidate, groups),
                production=mean_interval(part.production, groups),
                gain=mean_difference(part.apart.tolist(), groups),
                p_worse=judged.p_values.get(name),
                worse=name in worse,
            )
        )
    return tuple(scores)


def _kind_of(name: str) -> tuple[PartKind, str]:
    for prefix, kind in _PREFIXES.items():
        if name.startswith(prefix):
            return kind, name.removeprefix(prefix)
    return "length", name
