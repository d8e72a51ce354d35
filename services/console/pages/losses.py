"""Renders the losses of a training as a plot over its steps. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from services.console.history import Losses
from services.console.pages.layout import number

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM, _LINE = 640, 200, 44, 120, 14, 22, 13


def loss_plots(losses: Sequence[Losses]) -> list[str]:
    """Return a plot for each stage of a training."""
    return [loss_plot(list(stage)) for _, stage in groupby(losses, key=lambda at: at.steps)]


def loss_plot(losses: Sequence[Losses]) -> str:
    """Return the loss and the validation loss over the steps of a stage as an SVG, each with its last value."""
    first, last = losses[0].step, losses[-1].step
    curves = {
        "loss": [(at.step, at.loss) for at in losses if at.loss is not None],
        "validation": [(at.step, at.validation) for at in losses if at.validation is not None],
    }
    most = max(loss for curve in curves.values() for _, loss in curve) or 1.0

    def place(step: float, loss: float) -> tuple[float, float]:
        share = (step - first) / max(1.0, last - first)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * loss / most

    base, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    shapes = [
        f'<path class="axis" d="M{_LEFT} {_TOP}V{base}H{right}"/>',
        f'<text class="end" x="{_LEFT - 6}" y="{_TOP + 4}">{number(most, 2)}</text>',
        f'<text class="end" x="{_LEFT - 6}" y="{base}">0</text>',
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">step {number(first)}</text>',
        f'<text class="end" x="{right}" y="{_HEIGHT - 6}">step {number(last)}</text>',
    ]
    drawn = {name: [place(*point) for point in curve] for name, curve in curves.items() if curve}
    said, text_y = [], 0.0
    for name, points in sorted(drawn.items(), key=lambda item: item[1][-1][1]):  # From the upper end to the lower.
        (x, y), (step, loss) = points[-1], curves[name][-1]
        text_y = max(y + 4, text_y + _LINE)
        kind = ' class="held-out"' if name == "validation" else ""
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        shapes.append(f'<polyline{kind} points="{line}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
        shapes.append(f'<text x="{x + 8:.1f}" y="{text_y:.1f}">{name} {number(loss, 3)}</text>')
        said.append(f"{name} {number(loss, 3)} at step {number(step)}")
    label = f"Mean loss per answer token: {', '.join(said)}, of at most {number(most, 2)} from step {number(first)} on"
    return f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(shapes)}</svg>'
