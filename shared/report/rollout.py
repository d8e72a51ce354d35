"""A rollout as blocks: the evidence as it is now, the wealth over time, and every move. Pure.

A rollout and a move are JSON, as `rollouts.changed` and the deployer's API have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from shared.report.blocks import Axis, Block, Figures, Line, Plot, Table, Tag, Text, Tone
from shared.report.written import duration, number, written

Json = dict[str, Any]
_TONES: dict[str, Tone] = {
    "shadow": "go", "canary": "go", "promoted": "good", "rejected": "bad", "inconclusive": "open", "rolled_back": "bad",
}  # fmt: skip
_LEAST, _MOST = 1e-3, 1e9
"""Of the wealth that a plot tells apart."""


def rollout_blocks(events: Sequence[Json]) -> list[Block]:
    """A rollout by its events, the oldest first; between two moves they have newer evidence."""
    last, evidence = events[-1], events[-1]["evidence"]
    figures = {
        "wealth": number(evidence["wealth"], 3),
        "needed": number(1 / evidence["alpha"], 3),
        "won": evidence["wins"],
        "tied": evidence["ties"],
        "lost": evidence["losses"],
        "waiting for a label": evidence["pending"],
        "labels given": evidence["labels"],
        "labels expected": evidence["labels_expected"],
    }
    control = 100 - last["canary_percent"] if last.get("control") else 0
    moves = [now for n, now in enumerate(events) if n == 0 or _said(now) != _said(events[n - 1])]
    return [
        Figures(figures),
        *evidence_texts(evidence, control, last.get("previous_adapter")),
        *([Text(last["paused"], "open", "paused")] if last["paused"] else []),
        _wealth_over_time(events),
        moves_table(moves),
    ]


def evidence_texts(evidence: Json, control: int = 0, previous: str | None = None) -> list[Text]:
    """What the evidence shows beside the wealth. `control`: the percentage of users who stay on `previous`."""
    notes = [f"Gain over production: {_points(evidence, 'gain')} points (95 %, valid whenever one looks)."]
    needed = number(1 / evidence["alpha"], 3)
    if (left := evidence.get("margin_left")) is not None:
        notes.append(
            f"{100 * left:.3g} points are left for candidates that are merely not worse: wealth against being worse by "
            f"more {number(evidence['non_inferiority_wealth'], 3)} of {needed}."
        )
    if debited := evidence.get("margin_debited"):
        notes.append(f"Promoted as not worse by more than {100 * debited:.3g} points.")
    if control:
        notes.append(
            f"Promoted, with {control} % of users still on {previous or 'the base model'} as control: since then the "
            f"gain is {_points(evidence, 'control_gain')} points by {evidence['control_labels']} labels, and the "
            f"evidence of the guards {number(evidence['guards'], 3)} of 20, which would take it back."
        )
    if unknown := evidence.get("unidentified"):
        notes.append(f"{unknown} tickets are of unknown authors, who may be few.")
    warning = [Text(evidence["warning"], "open", "warning")] if evidence.get("warning") else []
    return [Text(" ".join(notes), "note"), *warning]


def moves_table(moves: Iterable[Json]) -> Table:
    """Who or what moved the rollout, when and why."""
    rows = [
        (
            datetime.fromisoformat(move.get("occurred_at") or move["at"]),
            move.get("candidate_adapter") or move["candidate"],
            Tag(stage(move), _TONES.get(move["stage"], "")),
            number(move["evidence"]["wealth"], 3),
            move.get("moved_by", ""),
            move["reason"],
        )
        for move in moves
    ]
    return Table(("when", "candidate", "stage", "wealth", "by", "why"), rows, whole=("when", "candidate"))


def stage(move: Json) -> str:
    """The stage, with the canary's share of users, and whether it is paused."""
    share = f", {move['canary_percent']} %" if move["stage"] == "canary" and move.get("canary_percent") else ""
    return f"{move['stage']}{share}{' (paused)' if move.get('paused') else ''}"


def wealth_plot(
    points: Sequence[tuple[float, float]], x: Axis, levels: dict[str, float], moments: Sequence[tuple[float, str]]
) -> Plot:
    """The wealth on a log scale, with the levels that it is to reach and the moves from stage to stage."""
    held = [(at, min(max(wealth, _LEAST), _MOST)) for at, wealth in points]
    values = [*levels.values(), *(wealth for _, wealth in held)]
    y = Axis("wealth", min(1.0, *values), 2 * max(values), [(w, number(w, 3)) for w in levels.values()], log=True)
    named = [(wealth, name) for name, wealth in levels.items()]
    return Plot("Wealth", x, y, [Line("wealth", held, "steps")], named, moments)


def _wealth_over_time(events: Sequence[Json]) -> Plot:
    times = [datetime.fromisoformat(event["occurred_at"]).astimezone(UTC) for event in events]
    seconds = [(at - times[0]).total_seconds() for at in times]
    ends = [(0.0, written(times[0])), (seconds[-1], f"{written(times[-1])}, after {duration(seconds[-1])}")]
    levels = {
        "canary": events[-1]["spec"]["rollout"]["canary_wealth"],
        "everyone, 1/α": 1 / events[-1]["evidence"]["alpha"],
    }
    wealth = [(at, float(event["evidence"]["wealth"])) for at, event in zip(seconds, events, strict=True)]
    stages = [stage(event) for event in events]
    moments = [(at, now) for at, now, before in zip(seconds, stages, ["", *stages], strict=False) if now != before]
    return wealth_plot(wealth, Axis("", 0.0, max(1.0, seconds[-1]), ends), levels, moments)


def _said(event: Json) -> tuple[str, str]:
    return stage(event), event["reason"]


def _points(evidence: Json, name: str) -> str:
    return f"{100 * evidence[f'{name}_low']:+.1f} to {100 * evidence[f'{name}_high']:+.1f}"
