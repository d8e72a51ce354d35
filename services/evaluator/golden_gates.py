"""The gates of the golden set: what was right must stay right, however slowly it would be lost. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.base import Gate
from schemas.tasks import TaskSpec
from services.evaluator.comparison import Comparison
from services.evaluator.domain import PastResult, Question, golden_key

MIN_COMMON_SHARE = 0.5
"""A result on fewer of today's rows is of another golden set."""
_MAX_NAMED = 20
"""Maximum number of golden rows that a gate's detail names."""


def golden_regression(spec: TaskSpec, golden: Comparison, past: Sequence[PastResult]) -> Gate:
    """Compare with the best count of production and of any adapter that was ever promoted, on the rows both were asked.

    Compared with production alone, 5 % could be lost each time, for ever. The detail names rows and quotes none: a row
    may be made of what a person asked, who may be forgotten later.
    """
    keys = [golden_key(question) for question in golden.questions]
    results = [PastResult("production", dict(zip(keys, golden.production.right, strict=True))), *past]
    right = golden.candidate.right
    best, share, detail = None, 0.0, ""
    for result in results:
        common = [position for position, key in enumerate(keys) if key in result.right]
        if len(common) < MIN_COMMON_SHARE * len(keys):
            continue
        theirs = sum(result.right[keys[position]] for position in common)
        ours = sum(right[position] for position in common)
        if best is None or (theirs - ours) / len(common) > share:
            best, share = result, (theirs - ours) / len(common)
            detail = f"Right on {ours}, the best so far ({result.adapter}) on {theirs} of {len(common)} golden rows."
    bar = spec.evaluation.max_golden_net_loss
    rows = _rows(spec, golden.questions, golden.lost)
    lost = f" Lost against production: {len(golden.lost)}, gained: {len(golden.gained)}{rows}."
    return Gate(
        name="golden_regression",
        passed=share <= bar,
        measured=share,
        required=f"<= {bar:g} of the golden answers lost, net, against the best so far",
        detail=f"{detail}{lost}",
    )


def must_pass(spec: TaskSpec, golden: Comparison, wrong_twice: Sequence[int]) -> Gate:
    """A row that a person marked counts by itself: no gain elsewhere outweighs it, nor that production loses it too."""
    total = sum(question.must_pass for question in golden.questions)
    return Gate(
        name="must_pass",
        passed=not wrong_twice,
        measured=len(wrong_twice),
        required="0 must-pass rows of the golden set wrong, and wrong again when repeated",
        detail=f"{len(wrong_twice)} of {total} must-pass rows are wrong{_rows(spec, golden.questions, wrong_twice)}.",
    )


def _rows(spec: TaskSpec, questions: Sequence[Question], positions: Sequence[int]) -> str:
    if not positions:
        return ""
    named = ", ".join(questions[position].row_id for position in positions[:_MAX_NAMED])
    more = f" and {len(positions) - _MAX_NAMED} more" if len(positions) > _MAX_NAMED else ""
    return f": {named}{more} (ratchet golden list {spec.name})"
