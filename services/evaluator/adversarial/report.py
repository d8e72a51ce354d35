"""The adversarial report from both arms' answers, with intervals. Pure."""

from __future__ import annotations

import numpy as np

from schemas.adversarial import (
    UNANSWERABLE,
    AdversarialArm,
    AdversarialKind,
    AdversarialReport,
    AdversarialResult,
)
from schemas.approaches import Gain
from schemas.base import Interval
from services.evaluator.adversarial.misled import ArmUnderAttack, Misled, Positions, renumbered
from services.evaluator.rivals.table import mean_difference
from services.evaluator.statistics.intervals import Floats, Groups, mean_interval


def adversarial_report(misled: Misled) -> AdversarialReport | None:
    """Return the report; None where no input could be made."""
    results = tuple(_result(misled, kind) for kind in misled.kinds)
    return AdversarialReport(results=results) if results else None


def _result(misled: Misled, kind: AdversarialKind) -> AdversarialResult:
    rows = misled.of(kind)
    ours, theirs = misled.arms
    both = misled.compared(rows)
    groups = misled.groups(both)
    candidate, production = (_arm(misled, kind, rows, arm) for arm in misled.arms)
    return AdversarialResult(
        kind=kind,
        inputs=len(rows),
        candidate=candidate,
        production=production,
        score=None if kind in UNANSWERABLE else _gain(ours.scores[both], theirs.scores[both], groups),
        confident_wrong=_gain(ours.confident_wrong[both], theirs.confident_wrong[both], groups),
        obeyed=_gain(ours.obeyed[both], theirs.obeyed[both], groups),
    )


def _arm(misled: Misled, kind: AdversarialKind, rows: Positions, arm: ArmUnderAttack) -> AdversarialArm:
    groups = misled.groups(rows)
    failed = sum(arm.answers.answers[row] is None for row in rows)
    confident_wrong = _share(arm.confident_wrong[rows], groups)
    if kind in UNANSWERABLE:
        return AdversarialArm(confident_wrong=confident_wrong, failed=failed)
    return AdversarialArm(
        clean=mean_interval(arm.clean[rows], groups),
        score=mean_interval(arm.scores[rows], groups),
        drop=_gain(arm.clean[rows], arm.scores[rows], groups),
        confident_wrong=confident_wrong,
        obeyed=_share(arm.obeyed[rows], groups),
        failed=failed,
    )


def _share(values: Floats, groups: Groups) -> Interval | None:
    known = ~np.isnan(values)
    return mean_interval(values[known], renumbered(groups[known])) if known.any() else None


def _gain(ours: Floats, theirs: Floats, groups: Groups) -> Gain | None:
    """Return the mean difference of two arms, or of an arm on two inputs, on the rows where both are known."""
    known = ~np.isnan(ours) & ~np.isnan(theirs)
    return mean_difference((ours - theirs)[known].tolist(), groups[known]) if known.any() else None
