"""Medians of paired runs, as a table, Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measured:
    """A figure that has no peer: how fresh, how large."""

    name: str
    unit: str
    value: float


@dataclass(frozen=True)
class Result:
    """Medians of pairs. `ratio`: ours over the peer's rate, pair by pair, median; above one is faster."""

    name: str
    unit: str
    ours: float
    peer: float
    ratio: float
    peer_name: str
    pairs: int


def compare(
    name: str,
    peer_name: str,
    unit: str,
    work: float,
    ours: Callable[[], object],
    peer: Callable[[], object],
    pairs: int,
) -> Result:
    """Run the two in turn, `pairs` times after a warm-up; `work` units are done by each call."""
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


def report(results: Sequence[Result], file: str, measured: Sequence[Measured] = ()) -> None:
    """Print the results and write them beside this file, as Markdown and JSON."""
    title = f"{file}: Python {platform.python_version()}, {os.cpu_count()} cores"
    written = [f"{title}\n"]
    if results:
        rows = [
            (r.name, r.unit, _number(r.ours), _number(r.peer), f"{r.ratio:.2f}", r.peer_name, str(r.pairs))
            for r in results
        ]
        written.append(_table(title, ("what", "unit", "ours", "peer", "ratio", "against", "pairs"), rows))
    if measured:
        written.append(_table(title, ("what", "unit", "value"), [(m.name, m.unit, _number(m.value)) for m in measured]))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{file}.md").write_text("\n".join(written))
    found = {"results": [asdict(r) for r in results], "measured": [asdict(m) for m in measured]}
    (RESULTS / f"{file}.json").write_text(json.dumps(found, indent=2) + "\n")


def _number(value: float) -> str:
    """Three digits that matter, or all of a large one."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Print a table; return it as Markdown."""
    table = Table(*columns, title=title)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        table.add_row(*row)
        lines.append("| " + " | ".join(row) + " |")
    Console().print(table)
    return "\n".join(lines) + "\n"
