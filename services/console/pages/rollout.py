"""Renders a rollout: the wealth over time as a plot, the evidence as it is now, and every move. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Any

from services.console.pages.layout import Markup, duration, figures, moment, muted, number, table, tag

Json = dict[str, Any]
"""An event `rollouts.changed` as it is stored: with the task's canary threshold, and nothing else of its definition."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 220, 44, 8, 14, 22
_STAGE_KINDS = {
    "shadow": "go", "canary": "go", "promoted": "good", "rejected": "bad", "inconclusive": "open", "rolled_back": "bad",
}  # fmt: skip


def rollout_parts(events: Sequence[Json]) -> list[str]:
    """Return the parts of a rollout's card. `events`: oldest first; between two moves they have newer evidence."""
    last = events[-1]
    evidence = last["evidence"]
    summary = figures(
        wealth=number(evidence["wealth"]),
        needed=number(1 / evidence["alpha"], 0),
        won=evidence["wins"],
        tied=evidence["ties"],
        lost=evidence["losses"],
        waiting_for_a_label=evidence["pending"],
        labels_given=evidence["labels"],
        labels_expected="–" if evidence["labels_expected"] is None else evidence["labels_expected"],
    )
    low, high = (f"{100 * evidence[end]:+.1f}" for end in ("gain_low", "gain_high"))
    notes = [f"Gain over production: {low} to {high} points (95 %, valid whenever one looks)."]
    if (left := evidence.get("margin_left")) is not None:
        notes.append(
            f"{_points(left)} points are left for candidates that are merely not worse: wealth against being worse by "
            f"more {number(evidence['non_inferiority_wealth'])} of {number(1 / evidence['alpha'], 0)}."
        )
    if debited := evidence.get("margin_debited"):
        notes.append(f"Promoted as not worse by more than {_points(debited)} points.")
    if last.get("control"):
        low, high = (f"{100 * evidence[end]:+.1f}" for end in ("control_gain_low", "control_gain_high"))
        share, before = 100 - last["canary_percent"], last["previous_adapter"] or "the base model"
        notes.append(
            f"Promoted, with {share} % of users still on {before} as control: since then the gain is {low} to {high} "
            f"points by {evidence['control_labels']} labels, and the evidence of the guards "
            f"{number(evidence['guards'])} of 20, which would take it back."
        )
    if evidence["unidentified"]:
        notes.append(f"{evidence['unidentified']} tickets are of unknown authors, who may be few.")
    warning = f"<p>{tag('warning', 'open')} {escape(evidence['warning'])}</p>" if evidence.get("warning") else ""
    paused = f"<p>{tag('paused', 'open')} {escape(last['paused'])}</p>" if last["paused"] else ""
    return [summary, muted(" ".join(notes)), warning, paused, wealth_plot(events), _moves_table(_moves(events))]


def _points(share: float) -> str:
    return f"{100 * share:.3g}"


def wealth_plot(events: Sequence[Json]) -> str:
    """Return the wealth over time as an SVG, on a log scale, with its thresholds and the moves from stage to stage."""
    points = [(datetime.fromisoformat(event["occurred_at"]), float(event["evidence"]["wealth"])) for event in events]
    start, seconds = points[0][0], max(1.0, (points[-1][0] - points[0][0]).total_seconds())
    everyone, canary = 1 / events[-1]["evidence"]["alpha"], events[-1]["spec"]["rollout"]["canary_wealth"]
    most = math.log10(2 * max(everyone, canary, *(wealth for _, wealth in points)))
    least = math.log10(min(1.0, *(max(wealth, 1e-3) for _, wealth in points)))

    def x(at: datetime) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (at - start).total_seconds() / seconds

    def y(wealth: float) -> float:
        share = (math.log10(max(wealth, 1e-3)) - least) / (most - least)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    step = f"M{x(points[0][0]):.1f} {y(points[0][1]):.1f}"  # It holds until the next event says otherwise.
    step += "".join(f"H{x(at):.1f}V{y(wealth):.1f}" for at, wealth in points[1:])
    base, label = _HEIGHT - _BOTTOM, f"Wealth {number(points[-1][1])}; {number(everyone, 0)} promotes"
    shapes = [
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>',
        *(_threshold(name, value, y(value)) for name, value in (("canary", canary), ("everyone, 1/α", everyone))),
        *(_stage(_named(event), x(datetime.fromisoformat(event["occurred_at"]))) for event in _stages(events)),
        f'<path d="{step}"/><circle cx="{x(points[-1][0]):.1f}" cy="{y(points[-1][1]):.1f}" r="3.5"/>',
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{moment(start)}</text>',
        f'<text class="end" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}">{moment(points[-1][0])}, after '
        f"{duration((points[-1][0] - start).total_seconds())}</text>",
    ]
    return f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(shapes)}</svg>'


def _threshold(name: str, wealth: float, y: float) -> str:
    line = f'<line class="threshold" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    amount = f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{number(wealth, 0)}</text>'
    return f'{line}{amount}<text class="end" x="{_WIDTH - _RIGHT}" y="{y - 4:.1f}">{name}</text>'


def _stage(stage: str, x: float) -> str:
    line = f'<line class="stage" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
    end, text = (" class=end", x - 4) if x > _WIDTH / 2 else ("", x + 4)
    return f'{line}<text{end} x="{text:.1f}" y="{_TOP - 3}">{escape(stage)}</text>'


def _named(event: Json) -> str:
    """The stage, with the canary's share of users."""
    return f"canary {event['canary_percent']} %" if event["stage"] == "canary" else str(event["stage"])


def _stages(events: Sequence[Json]) -> list[Json]:
    return [event for n, event in enumerate(events) if n == 0 or _named(event) != _named(events[n - 1])]


def _moves(events: Sequence[Json]) -> list[Json]:
    """The changes, without the events that repeat one with newer evidence."""
    said = [(_named(event), event["reason"]) for event in events]
    return [event for n, event in enumerate(events) if n == 0 or said[n] != said[n - 1]]


def _moves_table(moves: Sequence[Json]) -> str:
    rows: list[tuple[Markup | str, ...]] = [
        (moment(move["occurred_at"]), tag(_named(move), _STAGE_KINDS.get(move["stage"], "")),
         number(move["evidence"]["wealth"]), move["primary_adapter"] or "base model", move["moved_by"], move["reason"])
        for move in moves
    ]  # fmt: skip
    return table(("When", "Stage", "Wealth", "Serves", "By", "Why"), rows)
