"""Prints blocks as HTML: a page that stands alone and loads nothing, or a part of one of the console's pages.

Every text is escaped, by Jinja's autoescape; nothing else makes HTML of a text. Plots are drawn as SVG.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from schemas.base import Interval
from shared.report.blocks import Axis, Block, Line, Link, Plot, Tag
from shared.report.written import written

STYLE = Markup(Path(__file__).with_name("report.css").read_text())  # noqa: S704
"""The look of blocks; the console has it in its pages, too."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 240, 52, 16, 16, 36
"""Of a plot, in pixels, and the room beside its axes."""


def fragment(blocks: Iterable[Block]) -> Markup:
    """The blocks as HTML, for a page that has the style."""
    return Markup(_template("blocks.html.j2").module.show(blocks))  # noqa: S704


def page(title: str, blocks: Iterable[Block]) -> str:
    """A page of its own. It may run and load nothing, whatever a text in it says."""
    return str(_template("page.html.j2").render(title=title, content=fragment(blocks), style=STYLE))


def _across(plot: Plot, value: float) -> float:
    return round(_LEFT + _share(plot.x, value) * (_WIDTH - _LEFT - _RIGHT), 1)


def _up(plot: Plot, value: float) -> float:
    return round(_HEIGHT - _BOTTOM - _share(plot.y, value) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _share(axis: Axis, value: float) -> float:
    """How far from its low to its high end a value is; beyond an end it is at that end."""
    low, high, at = (math.log10(max(x, 1e-300)) if axis.log else x for x in (axis.low, axis.high, value))
    return min(max((at - low) / (high - low), 0.0), 1.0) if high > low else 0.0


def _path(plot: Plot, line: Line) -> str:
    (x, y), *others = [(_across(plot, x), _up(plot, y)) for x, y in line.points if not isinstance(y, Interval)]
    return f"M{x} {y}" + "".join(f"H{x}V{y}" if line.shape == "steps" else f"L{x} {y}" for x, y in others)


@cache
def _template(name: str) -> Any:
    environment = Environment(
        loader=PackageLoader("shared.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(
        WIDTH=_WIDTH, HEIGHT=_HEIGHT, LEFT=_LEFT, RIGHT=_RIGHT, TOP=_TOP, BOTTOM=_BOTTOM, across=_across, up=_up,
        path=_path,
    )  # fmt: skip
    environment.filters.update(written=written, kind=lambda block: type(block).__name__)
    environment.tests.update(
        tag=lambda cell: isinstance(cell, Tag),
        link=lambda cell: isinstance(cell, Link),
        interval=lambda value: isinstance(value, Interval),
    )
    return environment.get_template(name)
