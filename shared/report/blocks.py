"""The blocks of a report. None knows how it is shown. Pure.

A text may quote a user: a printer shows it as it is and never reads it as markup.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from schemas.adapters import ScoreDifference
from schemas.approaches import Gain
from schemas.base import Interval

Tone = Literal["", "good", "bad", "open", "go", "note"]
"""What a text says: it is fine, it is not, it is open, it goes on; a note only explains."""


class Share(float):
    """A share, which is written in per cent."""


@dataclass(frozen=True)
class Tag:
    """A word that stands out: the result of a gate, a stage."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Link:
    """Where to read on, in a cell or alone. The terminal shows the address."""

    text: str
    address: str


Cell = str | int | float | datetime | None | Interval | Gain | ScoreDifference | Tag | Link
"""What a table holds: a printer writes all cells of one type alike."""


@dataclass(frozen=True)
class Text:
    """One or more sentences. With a tone it is a verdict; with a tag before it, a remark."""

    text: str
    tone: Tone = ""
    tag: str = ""


@dataclass(frozen=True)
class Figures:
    """The few numbers that matter, each by its name."""

    values: Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """A table. `whole`: columns of what people copy, ids and times, which the terminal keeps on one line."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    whole: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """Blocks below a heading. A page folds what is `folded`; the terminal cuts its tables."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False


@dataclass(frozen=True)
class Bars:
    """Rows that are compared on a scale from 0 to `most`: name → a value of each series. `bad`: names in red."""

    title: str
    series: Sequence[str]
    rows: Mapping[str, Sequence[Interval | float | None]]
    most: float = 1.0
    bad: Collection[str] = ()


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, with the values that are written at it."""

    name: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False


@dataclass(frozen=True)
class Line:
    """A series of a plot: a curve, steps that hold until the next point, or marks with intervals."""

    name: str
    points: Sequence[tuple[float, float | Interval]]
    shape: Literal["curve", "steps", "marks"] = "curve"


@dataclass(frozen=True)
class Plot:
    """Lines over two axes. `levels`: named values of y; `moments`: named values of x; `diagonal`: what is ideal."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    levels: Sequence[tuple[float, str]] = ()
    moments: Sequence[tuple[float, str]] = ()
    diagonal: bool = False


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix. `cells`: the names of a row and a column, their count, and its share of the row."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[tuple[str, str, int, float]]


Block = Text | Link | Figures | Table | Section | Bars | Plot | Matrix


def share_axis(name: str, most: float = 1.0) -> Axis:
    """An axis of shares from 0 to `most`."""
    return Axis(name, 0.0, most, [(most * n / 4, f"{25 * most * n:.3g} %") for n in range(5)])
