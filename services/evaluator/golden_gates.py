"""The gates of the golden set: what was right must stay right, however slowly it would be lost. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from schemas.base import Gate
from schemas.tasks import TaskSpec
from services.evaluator.comparison import Comparison
from services.evaluator.domain import (
    GradedAnswers,
    PastResult,
    Question,
    Repeated,
    golden_key,
    golden_metric,
    is_judged,
)

MIN_COMMON_SHARE = 0.5
"""A result that shares less than this with the smaller of the two sets is of another one: one that grew is the same."""
_ROWS_TO_BE_SURE = 2.0
"""A bar of fewer rows than this leaves room for chance."""
_MAX_NAMED = 20
"""Maximum number of golden rows that a gate's detail names."""


def judged_part(spec: TaskSpec, golden: Comparison) -> Comparison:
    """Return both arms on the rows whose answers are right or wrong."""
    kept = [position for position, question in enumerate(golden.questions) if is_judged(question, spec)]
    if len(kept) == len(golden.questions):
        return golden

    def part(arm: GradedAnswers) -> GradedAnswers:
        return GradedAnswers(tuple(arm.answers[i] for i in kept), tuple(arm.grades[i] for i in kept))

    return Comparison([golden.questions[i] for i in kept], part(golden.candidate), part(golden.production))


def golden_regression(spec: TaskSpec, golden: Comparison, past: Sequence[PastResult]) -> Gate:
    """Compare with the best count of production and of any adapter that was ever promoted, on the rows both were asked.

    Compared with production alone, 5 % could be lost each time, for ever. The best of many is so by chance, too, which
    is allowed for (`_luck_of_best`). Where the bar is less than two rows one row
    more may be lost (`_stops`). The detail names rows and quotes none: a row may be made of what a person asked, who
    may be forgotten later.
    """
    name, bar = "golden_regression", spec.evaluation.max_golden_net_loss
    required = f"<= {bar:g} of the golden answers lost, net, against the best so far"
    judged, not_judged = judged_part(spec, golden), _not_judged(spec, golden)
    if not judged.questions:
        return Gate(name=name, passed=True, required=required, detail=f"Unknown.{not_judged}")
    keys = [golden_key(question, spec) for question in judged.questions]
    results = [PastResult("production", dict(zip(keys, judged.opponent.right, strict=True))), *past]
    right = judged.candidate.right
    in_common = [[position for position, key in enumerate(keys) if key in result.right] for result in results]
    compared = [
        (result, common)
        for result, common in zip(results, in_common, strict=True)
        if common and len(common) >= MIN_COMMON_SHARE * min(len(keys), len(result.right))
    ]
    worst, detail = (False, -1.0), ""
    for result, common in compared:
        theirs = sum(result.right[keys[position]] for position in common)
        ours = sum(right[position] for position in common)
        differing = sum(result.right[keys[position]] != right[position] for position in common)
        luck = _luck_of_best(len(compared), differing)
        loss = (_stops(theirs - ours, len(common), bar, luck), (theirs - ours) / len(common))
        if not detail or loss > worst:
            worst = loss
            detail = f"Right on {ours}, the best so far ({result.adapter}) on {theirs} of {len(common)} golden rows."
    rows = _rows(spec, judged.questions, judged.lost)
    lost = f" Lost against production: {len(judged.lost)}, gained: {len(judged.gained)}{rows}."
    stops, share = worst
    spared = "" if stops or share <= bar else " Of so few rows one more may be lost: it may be chance."
    return Gate(
        name=name, passed=not stops, measured=share, required=required, detail=f"{detail}{spared}{lost}{not_judged}"
    )


def _luck_of_best(results: int, differing: int) -> float:
    """How many rows the best of so many equal results is expected to be ahead of another one, by chance.

    The expected maximum of standard normal values (Blom 1958), by the standard deviation of the rows that differ. One
    result alone is not ahead by chance.
    """
    return float(ndtri((results - 0.375) / (results + 0.25))) * math.sqrt(differing)


def _stops(lost: int, rows: int, bar: float, luck: float = 0.0) -> bool:
    """Whether a net loss of so many rows is above the bar. `luck`: see `_luck_of_best`.

    Where the bar is less than two rows, one row more may be lost. If 4 % of the answers change from one adapter to the
    next, as many for the better, the bar by itself would stop equal candidates in 15 % of evaluations on 10 rows, 23 %
    on 19 and 10 % on 39. With it they are at most 5 % on any number of rows, at a bar of .05; one below those changes
    stops more (.02 on 149 rows: 15 %). A bar of 0 is taken at its word.
    """
    allowed = bar * rows + (luck if bar else 0.0)
    return lost > allowed and not (0.0 < bar * rows < _ROWS_TO_BE_SURE and lost <= allowed + 1.0)


def must_pass(spec: TaskSpec, golden: Comparison, repeated: Repeated) -> Gate:
    """A row that a person marked counts by itself: no gain elsewhere outweighs it, nor that production loses it too.

    A row that was answered but once stops nothing. If no other one is wrong, the gate is unknown.
    """
    name, required = "must_pass", "0 must-pass rows of the golden set wrong, and wrong again when repeated"
    total = sum(question.must_pass and is_judged(question, spec) for question in golden.questions)
    wrong = [position for position in repeated.wrong if is_judged(golden.questions[position], spec)]
    other = [position for position in repeated.wrong if position not in wrong]
    once = [position for position in repeated.unanswered if is_judged(golden.questions[position], spec)]
    not_equal = f" Answered in other words{_rows(spec, golden.questions, other)}." if other else ""
    unconfirmed = f" Wrong once, and once not answered{_rows(spec, golden.questions, once)}." if once else ""
    said = unconfirmed + not_equal + _not_judged(spec, golden)
    if not total or (once and not wrong):
        return Gate(name=name, passed=True, required=required, detail=f"Unknown.{said}")
    return Gate(
        name=name,
        passed=not wrong,
        measured=len(wrong),
        required=required,
        detail=f"{len(wrong)} of {total} must-pass rows are wrong{_rows(spec, golden.questions, wrong)}.{said}",
    )


def _not_judged(spec: TaskSpec, golden: Comparison) -> str:
    """Say how many texts are not judged, what would change that, and which scores such a bar would stand among."""
    texts = [i for i, question in enumerate(golden.questions) if not is_judged(question, spec)]
    if not texts:
        return ""
    low, middle, high = np.percentile([golden.production.scores[i] for i in texts], (0, 50, 100))
    return (
        f" {len(texts)} golden texts are not judged: hardly any is answered in the same words. Set "
        f"evaluation.golden_score, from which on an answer counts as right; production's have {golden_metric(spec)} "
        f"from {low:.2f} to {high:.2f}, half of them under {middle:.2f}."
    )


def _rows(spec: TaskSpec, questions: Sequence[Question], positions: Sequence[int]) -> str:
    if not positions:
        return ""
    named = ", ".join(questions[position].row_id for position in positions[:_MAX_NAMED])
    more = f" and {len(positions) - _MAX_NAMED} more" if len(positions) > _MAX_NAMED else ""
    return f": {named}{more} (ratchet golden list {spec.name})"
