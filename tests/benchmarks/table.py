"""Reports of measurements, as a table, Markdown and JSON; and medians of paired runs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_missed: list[str] = []


@dataclass(frozen=True)
class Measured:
    """A figure without a peer, such as a latency or a size."""

    name: str
    unit: str
    value: float
    max_value: float | None = None
    """The aim: at most this."""
    min_value: float | None = None
    """The aim: at least this."""

    @property
    def missed(self) -> bool:
        """True if there is an aim that is not met."""
        return (self.max_value is not None and self.value > self.max_value) or (
            self.min_value is not None and self.value < self.min_value
        )


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Result:
    """Medians of paired runs. `ratio`: the median of our rate over the peer's, pair by pair; above 1 we are faster."""

    name: str
    unit: str
    ours: float
    peer: float
    ratio: float
    peer_name: str
    pairs: int
    min_ratio: float | None = None
    """The aim: at least this ratio."""

    @property
    def missed(self) -> bool:
        """True if there is an aim that is not met."""
        return self.min_ratio is not None and self.ratio < self.min_ratio


def compare(
    name: str,
    peer_name: str,
    unit: str,
    work: float,
    ours: Callable[[], object],
    peer: Callable[[], object],
    pairs: int,
) -> Result:
    """Run the two in turn, `pairs` times after a warm-up. Each call does `work` units."""
    ours(), peer()
    rates: list[tuple[float, float]] = []
    for _ in range(pairs):
        rates.append((work / _seconds(ours), work / _seconds(peer)))
    return Result(
        name,
        unit,
        statistics.median(a for a, _ in rates),
        statistics.median(b for _, b in rates),
        statistics.median(a / b for a, b in rates),
        peer_name,
        pairs,
    )


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def report(
    results: Sequence[Result],
    file: str,
    measured: Sequence[Measured] = (),
    grids: Sequence[Grid] = (),
    *,
    write: bool = True,
) -> None:
    """Print the results, with their aims, and write them to `RESULTS` as Markdown and JSON, unless `write` is False.

    Aims that are missed end the command with 1 (`take_missed`).
    Results of files that are not committed are only printed.
    """
    _missed.extend(f"{result.name} ({result.peer_name})" for result in results if result.missed)
    _missed.extend(figure.name for figure in measured if figure.missed)
    title = f"{file}: Python {platform.python_version()}, {os.cpu_count()} cores"
    measured_at, commit, changed = (
        datetime.now(UTC).date().isoformat(),
        _git("rev-parse", "--short", "HEAD"),
        _changed(),
    )
    written = [f"{title}, measured on {measured_at} of {commit}\n"]
    if results:
        rows = [
            (r.name, r.unit, _number(r.ours), _number(r.peer), f"{r.ratio:.2f}", r.peer_name, str(r.pairs))
            for r in results
        ]
        aims = [_aim("≥", r.min_ratio, not r.missed) for r in results]
        written.append(_aimed(title, ("what", "unit", "ours", "peer", "ratio", "against", "pairs"), rows, aims))
    if measured:
        rows = [(m.name, m.unit, _number(m.value)) for m in measured]
        aims = [
            _aim("≥", m.min_value, not m.missed) if m.max_value is None else _aim("≤", m.max_value, not m.missed)
            for m in measured
        ]
        written.append(_aimed(title, ("what", "unit", "value"), rows, aims))
    for grid in grids:
        written.append(f"{grid.title}:\n\n{_table(f'{file}: {grid.title}', grid.columns, grid.rows)}")
    if not write:
        return
    if changed:
        print(f"{file}: not written to {RESULTS}, since these files differ from {commit}: commit them first\n{changed}")
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{file}.md").write_text("\n".join(written))
    found: dict[str, object] = {"measured_at": measured_at, "commit": commit}
    found |= {"results": [asdict(r) for r in results], "measured": [asdict(m) for m in measured]}
    found |= {"grids": [asdict(grid) for grid in grids]} if grids else {}
    (RESULTS / f"{file}.json").write_text(json.dumps(found, indent=2) + "\n")


def take_missed() -> list[str]:
    """Return the names of the aims that were missed since the last call."""
    taken = list(_missed)
    _missed.clear()
    return taken


def _changed() -> str:
    """The files that differ from the commit that is measured, others than results."""
    return _git(
        "status", "--porcelain", "--untracked-files=all", "--", ":(top)", ":(top,exclude,glob)tests/*/results/**"
    )


def _git(*arguments: str) -> str:
    return subprocess.run(
        ("git", *arguments), cwd=RESULTS.parent, capture_output=True, text=True, check=True
    ).stdout.strip()


def _number(value: float) -> str:
    """Return three significant digits, or all digits before the point of a large number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _aim(sign: str, aim: float | None, met: bool) -> str:
    return "" if aim is None else f"{sign} {aim:g}: {'met' if met else 'missed'}"


def _aimed(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]], aims: Sequence[str]) -> str:
    """Print a table, with a column for the aims if there are any; return it as Markdown."""
    if not any(aims):
        return _table(title, columns, rows)
    return _table(title, (*columns, "aim"), [(*row, aim) for row, aim in zip(rows, aims, strict=True)])


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Print a table; return it as Markdown."""
    table = Table(*columns, title=title)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        table.add_row(*row)
        lines.append("| " + " | ".join(row) + " |")
    Console().print(table)
    return "\n".join(lines) + "\n"
