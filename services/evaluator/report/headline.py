"""The verdict in a sentence, and whether something cheaper does as well: the first line of every report. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.adapters import ArmScore, ScoreDifference
from schemas.approaches import ApproachTable
from schemas.base import Gate, Verdict
from services.evaluator.gates import NOT_WORSE, OF_ROWS


def headline(
    verdict: Verdict,
    gates: Sequence[Gate],
    arms: tuple[ArmScore, ArmScore],
    gain: ScoreDifference,
    p_worse: float,
    approaches: ApproachTable,
) -> str:
    """Return the line. `arms`: candidate and production. `p_worse`: what the gate of all rows goes by."""
    said = [_verdict(verdict, gates), _scores(arms), _finding(verdict, gain, p_worse), *approaches.findings[:1]]
    return " ".join(part for part in said if part)[:3_000]


def _verdict(verdict: Verdict, gates: Sequence[Gate]) -> str:
    if verdict == "failed":
        failed = [gate.name.replace("_", " ") for gate in gates if not gate.passed]
        return f"Stopped by {', '.join(failed)}."
    undecided = [gate for gate in gates if gate.labels_needed]
    if undecided:
        needed = max(gate.labels_needed or 0 for gate in undecided)
        names = ", ".join(gate.name.replace("_", " ") for gate in undecided)
        return f"Not stopped, and undecided: {needed} more labelled rows would decide {names}."
    return "Passed every gate."


def _finding(verdict: Verdict, gain: ScoreDifference, p_worse: float) -> str:
    """Say what the gain shows. The gate has a stricter level than a finding: it shares its own with the other gates.

    Where the gain is of all traffic, it says so and by how much: the rows as they are, whose scores stand before it and
    which the gate looks at too, may show something else.
    """
    of_traffic = f" by {100 * abs(gain.value):.1f} points on all traffic" if gain.basis == "traffic" else ""
    rows_are_worse = gain.finding != "worse" and p_worse < NOT_WORSE
    if gain.finding == "better" and gain.basis == "rows":
        return f"It is shown to be better on these rows, {OF_ROWS}."
    if gain.finding == "better":
        also = ", and to be worse on the rows as they are" if rows_are_worse else ""
        return f"It is shown to be better{of_traffic}{also}."
    if gain.finding == "not_shown":
        return "It is shown to be worse on the rows as they are." if rows_are_worse else ""
    if p_worse < NOT_WORSE:
        return f"It is shown to be worse{of_traffic}."
    yet = "" if verdict == "failed" else ", not enough to stop"
    return f"It is probably worse{of_traffic} (p = {p_worse:.2g}){yet}."


def _scores(arms: tuple[ArmScore, ArmScore]) -> str:
    candidate, production = arms
    opponent = production.adapter or "the base model"
    ours, theirs = candidate.score, production.score
    if ours and theirs and (ours, theirs) != (candidate.accuracy, production.accuracy):  # Some are right in part.
        return f"The candidate scores {ours.value:.1%} on {ours.n} held-out rows, {opponent} {theirs.value:.1%}."
    ours, theirs = candidate.accuracy, production.accuracy
    return f"The candidate is right on {ours.value:.1%} of {ours.n} held-out rows, {opponent} {theirs.value:.1%}."
