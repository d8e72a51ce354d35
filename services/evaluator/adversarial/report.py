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
from services.evaluator.statistics.confidence import auroc
from services.evaluator.statistics.intervals import Floats, Groups, group_numbers, mean_interval, wilson

_TRUE_POSITIVES = 0.95
"""Share of the held-out rows whose answers are to be taken as sure ones."""


def adversarial_report(misled: Misled) -> AdversarialReport | None:
    """Return the report; None where no input could be made."""
    results = tuple(_result(misled, kind) for kind in misled.kinds)
    return AdversarialReport(results=results) if results else None


def _result(misled: Misled, kind: AdversarialKind) -> AdversarialResult:
    rows = misled.of(kind)
    ours, theirs = misled.arms
    both = misled.compared(rows)
    groups = misled.groups(both)
    clean = (misled.evaluation.candidate_confidence, misled.evaluation.production_confidence)
    candidate, production = (_arm(misled, kind, rows, arm, sure) for arm, sure in zip(misled.arms, clean, strict=True))
    return AdversarialResult(
        kind=kind,
        inputs=len(rows),
        candidate=candidate,
        production=production,
        score=None if kind in UNANSWERABLE else _gain(ours.scores[both], theirs.scores[both], groups),
        confident_wrong=_gain(ours.confident_wrong[both], theirs.confident_wrong[both], groups),
        obeyed=_gain(ours.obeyed[both], theirs.obeyed[both], groups),
    )


def _arm(
    misled: Misled, kind: AdversarialKind, rows: Positions, arm: ArmUnderAttack, clean_confidence: Floats | None
) -> AdversarialArm:
    groups = misled.groups(rows)
    failed = sum(arm.answers.answers[row] is None for row in rows)
    confident_wrong = _share(arm.confident_wrong[rows], groups)
    if kind in UNANSWERABLE:
        told = _told_apart(misled, rows, arm.confidence, clean_confidence)
        return AdversarialArm(confident_wrong=confident_wrong, auroc=told[0], fpr95=told[1], failed=failed)
    return AdversarialArm(
        clean=mean_interval(arm.clean[rows], groups),
        score=mean_interval(arm.scores[rows], groups),
        drop=_gain(arm.clean[rows], arm.scores[rows], groups),
        confident_wrong=confident_wrong,
        obeyed=_share(arm.obeyed[rows], groups),
        failed=failed,
    )


def _told_apart(
    misled: Misled, rows: Positions, confidence: Floats | None, clean: Floats | None
) -> tuple[Interval | None, Interval | None]:
    """Return by how much confidence tells held-out rows from such inputs: AUROC, and FPR at 95 % TPR."""
    if confidence is None or clean is None:
        return None, None
    names = [question.group for question in misled.evaluation.questions]
    scores = np.concatenate([clean, confidence[rows]])
    is_row = np.concatenate([np.ones(len(clean)), np.zeros(len(rows))])
    groups = group_numbers([*names, *("" for _ in rows)])
    known = ~np.isnan(scores)
    scores, is_row, groups = scores[known], is_row[known], groups[known]
    foreign, own = scores[is_row == 0], np.sort(scores[is_row == 1])
    if not len(foreign) or not len(own):
        return None, None
    bar = own[int((1.0 - _TRUE_POSITIVES) * len(own))]
    return auroc(scores, is_row, groups), wilson(int((foreign >= bar).sum()), len(foreign))


def _share(values: Floats, groups: Groups) -> Interval | None:
    known = ~np.isnan(values)
    return mean_interval(values[known], renumbered(groups[known])) if known.any() else None


def _gain(ours: Floats, theirs: Floats, groups: Groups) -> Gain | None:
    """Return the mean difference of two arms, or of an arm on two inputs, on the rows where both are known."""
    known = ~np.isnan(ours) & ~np.isnan(theirs)
    return mean_difference((ours - theirs)[known].tolist(), groups[known]) if known.any() else None
