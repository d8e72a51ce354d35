"""How a report writes what a cell holds; – for what was not measured. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from schemas.adapters import ScoreDifference
from schemas.approaches import Gain
from schemas.base import Interval
from shared.report.blocks import Cell, Link, Share, Tag


def written(cell: Cell) -> str:
    """A cell as people read it: shares with their 95 % interval, differences in points."""
    match cell:
        case None:
            return "–"
        case str():
            return cell
        case Tag() | Link():
            return cell.text
        case datetime():
            return f"{cell.astimezone(UTC):%d %b %H:%M:%S}"
        case Share():
            return f"{cell:.1%}"
        case Interval():
            return f"{cell.value:.1%} ({cell.low:.1%}–{cell.high:.1%})"
        case Gain() | ScoreDifference():
            return f"{100 * cell.value:+.1f} ({100 * cell.low:+.1f} to {100 * cell.high:+.1f})"
    return number(cell)


def number(value: float | None, digits: int = 4) -> str:
    """A number with separators and at most so many significant digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1_000 else f"{value:.{digits}g}"


def decimals(found: Interval | None, digits: int = 3) -> str:
    """A number from 0 to 1 that is no share, with its 95 % interval."""
    bounds = "{:.{d}f} ({:.{d}f}–{:.{d}f})"
    return "–" if found is None else bounds.format(found.value, found.low, found.high, d=digits)


def duration(seconds: float) -> str:
    """A length of time in its two largest units. Clocks of two machines may differ: none is below 0."""
    minutes, remainder = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {remainder} s" if minutes else f"{remainder} s"
