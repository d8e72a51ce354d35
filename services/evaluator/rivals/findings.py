"""What a table of approaches says, in sentences; the most important one first. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.approaches import Approach, ApproachKind, ExamplesCurve, Gain
from shared.model.prices import money

FLAT = 0.02
"""A curve has flattened where doubling the examples gains less than this for sure: the interval's upper end."""
NAMES = {
    ApproachKind.FEW_SHOT: "few-shot prompting",
    ApproachKind.RETRIEVAL_FEW_SHOT: "few-shot prompting with retrieved examples",
    ApproachKind.TF_IDF: "a linear classifier on TF-IDF",
    ApproachKind.EMBEDDING: "a linear classifier on sentence embeddings",
    ApproachKind.BASE: "the base model as it is",
    ApproachKind.PRODUCTION: "production",
    ApproachKind.CANDIDATE: "the adapter",
}
_MAX_FAILED_SHARE = 0.1
"""A rival more of whose requests failed was not measured: a failure counts as a wrong answer."""
_RIGHT, _SCORED = "right on", "a mean score of"
_LINEAR = (ApproachKind.TF_IDF, ApproachKind.EMBEDDING)
_PROMPTS = (ApproachKind.FEW_SHOT, ApproachKind.RETRIEVAL_FEW_SHOT)


def findings(
    rows: Sequence[Approach],
    curve: ExamplesCurve | None,
    currency: str,
    missing: Sequence[str] = (),
    *,
    is_scored: bool = False,
) -> tuple[str, ...]:
    """Return the sentences. `missing`: why a rival is not in the table, one sentence each.

    `is_scored`: of generated text, whose answers have scores instead of being right or wrong.
    """
    right_on = _SCORED if is_scored else _RIGHT
    candidate = next(row for row in rows if row.kind is ApproachKind.CANDIDATE)
    silent = [row for row in rows if row.kind in (*_LINEAR, *_PROMPTS) and _is_silent(row)]
    compared = [row for row in rows if row not in silent]
    missing = (*missing, *map(_not_compared, silent))
    said = []
    for kinds in (_LINEAR, _PROMPTS):
        if rival := _best_tie(compared, kinds):
            said.append(_tie(rival, candidate, currency, right_on))
    if not said and (rival := _best(compared, (*_LINEAR, *_PROMPTS))):
        said.append(_beaten(rival, candidate, right_on, all_compared=not missing))
    if curve is not None:
        said.append(_curve(curve))
    return (*said, *missing)


def _is_silent(row: Approach) -> bool:
    return row.failed > _MAX_FAILED_SHARE * row.accuracy.n


def _not_compared(row: Approach) -> str:
    """Of a rival many of whose requests failed: what is counted as wrong was not its answers."""
    return f"Not compared with {NAMES[row.kind]}: {row.failed} of {row.accuracy.n} requests failed."


def ties(row: Approach) -> bool:
    """True if the candidate is not measurably better: the interval of its gain reaches 0 or less."""
    return row.candidate_gain is not None and row.candidate_gain.low <= 0.0


def _best_tie(rows: Sequence[Approach], kinds: Sequence[ApproachKind]) -> Approach | None:
    return _best([row for row in rows if ties(row)], kinds)


def _best(rows: Sequence[Approach], kinds: Sequence[ApproachKind]) -> Approach | None:
    """Return the row on which the candidate gains least: accuracies of different samples are not compared."""
    of_kind = [row for row in rows if row.kind in kinds and row.candidate_gain is not None]
    return min(of_kind, key=lambda row: row.candidate_gain.value if row.candidate_gain else 0.0, default=None)


def _tie(rival: Approach, candidate: Approach, currency: str, right_on: str) -> str:
    name, cost = NAMES[rival.kind], ""
    if rival.cost_per_month is not None and candidate.cost_per_month is not None:
        cost = f" It costs {money(rival.cost_per_month, currency)} a month, the adapter "
        cost += f"{money(candidate.cost_per_month, currency)}."
    better = rival.candidate_gain is not None and rival.candidate_gain.high < 0.0
    does = "does better than" if better else "does as well as"
    scored = f"{right_on} {rival.accuracy.value:.1%} {'on' if right_on == _SCORED else 'of'} {rival.accuracy.n}"
    return (
        f"{name[0].upper()}{name[1:]} {does} the adapter: {scored} held-out rows{_failures(rival)}, where the adapter "
        f"gains {_points(rival.candidate_gain)}.{cost}"
    )


def _beaten(rival: Approach, candidate: Approach, right_on: str, *, all_compared: bool) -> str:
    whom = "every cheap rival" if all_compared else "every cheap rival that was compared"
    return (
        f"The adapter beats {whom}: {right_on} {candidate.accuracy.value:.1%}; on the {rival.accuracy.n} "
        f"rows of the best of them, {NAMES[rival.kind]} ({rival.accuracy.value:.1%}{_failures(rival)}), it gains "
        f"{_points(rival.candidate_gain)}."
    )


def _failures(row: Approach) -> str:
    return f", {row.failed} of them failed requests, which count in no gain" if row.failed else ""


def _curve(curve: ExamplesCurve) -> str:
    before, after = curve.points[-2], curve.points[-1]
    measured = (
        f"from {before.examples} to {after.examples} examples, a linear classifier gains {_points(curve.doubling)}"
    )
    if curve.doubling.high < FLAT:
        return f"More of the same examples will not help: {measured}. Correct what is wrong most instead."
    if curve.doubling.low > 0.0:
        return f"More examples still help: {measured}."
    return f"Whether more of the same examples help cannot be told yet: {measured}."


def _points(gain: Gain | None) -> str:
    if gain is None:
        return "–"
    low, high = f"{100 * gain.low:+.1f}", f"{100 * gain.high:+.1f}"
    return f"{100 * gain.value:+.1f} points (95 % {low} to {high})"
