"""What the plots of the page show, in pixels: the templates draw it as SVG. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from schemas.approaches import ExamplesCurve
from schemas.base import Interval
from schemas.evaluation import ArmReport, ConfusionCell, PartKind, PartScore, ReliabilityBin, RiskPoint

MAX_LABELS = 100
"""A larger matrix has the labels with the most mistakes."""
MAX_ROWS = 24
"""Parts of one kind that are drawn; the table has all."""
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 420, 260, 40, 8, 34
_RIGHT = 24


@dataclass(frozen=True)
class Cell:
    """A square of the matrix. `share`: of the rows of its right label."""

    x: float
    y: float
    share: float
    confusion: ConfusionCell

    @property
    def right(self) -> bool:
        return self.confusion.expected == self.confusion.given


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix. `rows` and `columns`: labels; `left_out`: labels that it has no room for."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    size: int
    left_out: int

    margin = 150
    """Room for labels, to the left and above."""

    @property
    def width(self) -> int:
        return self.margin + self.size * len(self.columns) + 10

    @property
    def height(self) -> int:
        return self.margin + self.size * len(self.rows) + 10


@dataclass(frozen=True)
class Mark:
    """A point with its interval, in pixels."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Row:
    """A row of a plot of intervals. The marks' x are measured along, `y` is theirs."""

    name: str
    rows: int
    worse: bool
    candidate: Mark
    production: Mark


@dataclass(frozen=True)
class Line:
    """A curve through points in pixels."""

    points: tuple[tuple[float, float], ...]

    @property
    def path(self) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


def matrix(arm: ArmReport) -> Matrix | None:
    """Return an arm's confusion matrix, with the labels in the task's order; None of an arm without labels."""
    if not arm.confusions:
        return None
    known = [score.label for score in arm.classes]
    mistakes: Counter[str] = Counter()
    for found in arm.confusions:
        if found.expected != found.given:
            mistakes[found.expected] += found.count
            mistakes[found.given] += found.count
    occurring = {name for found in arm.confusions for name in (found.expected, found.given)}
    labels = [name for name in known if name in occurring] + sorted(occurring.difference(known))
    kept = set(sorted(labels, key=lambda name: -mistakes[name])[:MAX_LABELS])
    columns = tuple(name for name in labels if name in kept)
    expected = {found.expected for found in arm.confusions}  # Of tools also several calls together.
    rows = tuple(name for name in columns if name in expected)
    size = max(10, min(30, 560 // len(columns)))
    total = Counter[str]()
    for found in arm.confusions:
        total[found.expected] += found.count
    row_of, column_of = ({name: i for i, name in enumerate(names)} for names in (rows, columns))
    cells = tuple(
        Cell(
            Matrix.margin + size * column_of[found.given],
            Matrix.margin + size * row_of[found.expected],
            found.count / total[found.expected],
            found,
        )
        for found in arm.confusions
        if found.expected in row_of and found.given in column_of
    )
    return Matrix(rows, columns, cells, size, len(labels) - len(columns))


def reliability(bins: Sequence[ReliabilityBin]) -> tuple[Mark, ...]:
    """Return the marks of a reliability diagram: how many answers are right over their mean confidence."""
    return tuple(
        Mark(
            across(found.confidence), up(found.accuracy.value), up(found.accuracy.low), up(found.accuracy.high),
            f"confidence {found.confidence:.2f}: {_interval(found.accuracy)} right of {found.accuracy.n}",
        )
        for found in bins
    )  # fmt: skip


def risk_line(arm: ArmReport, highest: float) -> Line | None:
    """Return the error rate over coverage, on an axis from 0 to `highest`; None where there is no confidence."""
    points = _steady(arm)
    return Line(tuple((across(p.coverage), up(p.risk / highest)) for p in points)) if points else None


def highest_risk(arms: Iterable[ArmReport]) -> float:
    """Return the end of the axis of error rates: a tenth above the highest one, and 0.1 at least."""
    highest = max((point.risk for arm in arms for point in _steady(arm)), default=0.0)
    return min(1.0, max(0.1, math.ceil(10 * highest + 1e-9) / 10))


def _steady(arm: ArmReport) -> list[RiskPoint]:
    """Return the points from 5 % of the answers on: before them a single error is a high rate."""
    return [point for point in arm.risk_coverage if point.coverage >= 0.05]


def examples_line(curve: ExamplesCurve) -> tuple[Line, tuple[Tick, ...]]:
    """Return accuracy over the number of training rows, on a log scale, and the ticks of that scale."""
    counts = [math.log2(point.examples) for point in curve.points]
    least, span = counts[0], max(counts[-1] - counts[0], 1e-9)
    points = [(across((n - least) / span), up(p.accuracy)) for n, p in zip(counts, curve.points, strict=True)]
    ticks = [Tick(x, f"{p.examples:,}") for (x, _), p in zip(points, curve.points, strict=True)]
    return Line(tuple(points)), tuple(ticks)


def part_rows(parts: Sequence[PartScore], kind: PartKind) -> tuple[Row, ...]:
    """Return the parts of a kind: where the candidate loses most first, then by size."""
    of_kind = [part for part in parts if part.kind == kind]
    of_kind.sort(key=lambda part: (not part.worse, part.gain.value, -part.rows))
    return tuple(
        Row(part.name, part.rows, part.worse, _along(part.candidate), _along(part.production))
        for part in of_kind[:MAX_ROWS]
    )


def across(share: float) -> float:
    """Return the x of a share of the plot's width."""
    return LEFT + share * (WIDTH - LEFT - _RIGHT)


def up(share: float) -> float:
    """Return the y of a share of the plot's height: 0 is below."""
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def ticks(scale: Callable[[float], float], end: float = 1.0) -> tuple[Tick, ...]:
    """Return five ticks of an axis of shares from 0 to `end`."""
    return tuple(Tick(scale(n / 4), f"{100 * end * n / 4:.3g} %") for n in range(5))


def _along(interval: Interval) -> Mark:
    def x(share: float) -> float:
        return 150 + 250 * share

    return Mark(x(interval.value), 0.0, x(interval.low), x(interval.high), _interval(interval))


def _interval(interval: Interval) -> str:
    return f"{interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%})"
