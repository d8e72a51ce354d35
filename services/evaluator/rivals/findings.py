"""What a table of approaches says, in sentences; the most important one first. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.approaches import Approach, ApproachKind, Gain
from shared.model.prices import money

RIVALS = {
    ApproachKind.LINEAR: "a linear classifier on sentence embeddings",
    ApproachKind.BASE: "the base model as it is",
}
_MAX_FAILED_SHARE = 0.1
"""A rival more of whose requests failed was not measured: a failure counts as a wrong answer."""
_RIGHT, _SCORED = "right on", "a mean score of"


def findings(
    rows: Sequence[Approach], currency: str, missing: Sequence[str] = (), *, is_scored: bool = False
) -> tuple[str, ...]:
    """Return the sentences. `missing`: why a rival is not in the table, one sentence each.

    `is_scored`: of generated text, whose answers have scores instead of being right or wrong.
    """
    right_on = _SCORED if is_scored else _RIGHT
    candidate = next(row for row in rows if row.kind is ApproachKind.CANDIDATE)
    asked = [row for kind in RIVALS for row in rows if row.kind is kind]
    missing = (*missing, *(_not_compared(row) for row in asked if _is_silent(row)))
    rivals = [row for row in asked if row.candidate_gain is not None and not _is_silent(row)]
    said = [_tie(rival, candidate, currency, right_on) for rival in rivals if ties(rival)]
    if rivals and not said:
        # The one on which the candidate gains least: accuracies of different samples are not compared.
        best = min(rivals, key=lambda row: row.candidate_gain.value if row.candidate_gain else 0.0)
        said.append(_beaten(best, candidate, right_on, all_compared=not missing))
    return (*said, *missing)


def _is_silent(row: Approach) -> bool:
    return row.failed > _MAX_FAILED_SHARE * row.accuracy.n


def _not_compared(row: Approach) -> str:
    """Of a rival many of whose requests failed: what is counted as wrong was not its answers."""
    return f"Not compared with {RIVALS[row.kind]}: {row.failed} of {row.accuracy.n} requests failed."


def ties(row: Approach) -> bool:
    """True if the candidate is not measurably better: the interval of its gain reaches 0 or less."""
    return row.candidate_gain is not None and row.candidate_gain.low <= 0.0


def _tie(rival: Approach, candidate: Approach, currency: str, right_on: str) -> str:
    name, cost = RIVALS[rival.kind], ""
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
        f"rows of the best of them, {RIVALS[rival.kind]} ({rival.accuracy.value:.1%}{_failures(rival)}), it gains "
        f"{_points(rival.candidate_gain)}."
    )


def _failures(row: Approach) -> str:
    return f", {row.failed} of them failed requests, which count in no gain" if row.failed else ""


def _points(gain: Gain | None) -> str:
    if gain is None:
        return "–"
    low, high = f"{100 * gain.low:+.1f}", f"{100 * gain.high:+.1f}"
    return f"{100 * gain.value:+.1f} points (95 % {low} to {high})"
