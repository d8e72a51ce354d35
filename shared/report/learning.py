"""What a cycle learned from, and how its training went, as blocks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.report.blocks import Axis, Block, Figures, Line, Plot, Share, Table, Tag, Text
from shared.report.written import number

_MAX_MODES = 12


def failure_blocks(event: dict[str, Any]) -> list[Block]:
    """What a `failures.clustered` found."""
    count = len(event["modes"]) + event.get("modes_left_out", 0)
    figures = Figures({"suspects": event["suspects"], "failure modes": count, "in no mode": event["noise"]})
    return [figures, modes_table(event["modes"]) if event["modes"] else Text("No mode yet.", "note")]


def modes_table(modes: Sequence[dict[str, Any]]) -> Table:
    """Failure modes, the largest first, with their most typical examples."""
    rows = [
        (
            mode["name"],
            Tag("new", "go") if mode.get("is_new") else "",
            mode["size"],
            Share(mode["share"]),
            None if mode["mean_confidence"] is None else Share(mode["mean_confidence"]),
            " · ".join(f"“{text[:160]}”" for text in mode["exemplars"][:3]),
        )
        for mode in sorted(modes, key=lambda mode: -mode["size"])[:_MAX_MODES]
    ]
    return Table(("failure mode", "", "size", "share", "confidence", "most typical examples"), rows)


def loss_plot(curves: dict[str, Sequence[tuple[float, float]]]) -> Plot:
    """The losses of a stage of a training over its steps, each named with its last value."""
    points = [point for curve in curves.values() for point in curve]
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    most = max(loss for _, loss in points) or 1.0
    steps = Axis("step", first, last, [(step, number(step)) for step in dict.fromkeys((first, last))])
    lines = [Line(f"{name} {number(curve[-1][1], 3)}", curve) for name, curve in curves.items() if curve]
    loss = Axis("loss", 0.0, most, [(0.0, "0"), (most, number(most, 3))])
    return Plot("Mean loss per answer token", steps, loss, lines)
