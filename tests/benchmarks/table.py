"""Medians of paired runs, as a table, Markdown and JSON."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


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


def report(results: list[Result], file: str) -> None:
    """Print the results and write them beside this file."""
    table = Table(
        "what", "unit", "ours", "peer", "ratio", "against", "pairs", title=f"Python {platform.python_version()}"
    )
    lines = ["| what | unit | ours | peer | ratio | against | pairs |", "|---|---|---|---|---|---|---|"]
    for r in results:
        row = [r.name, r.unit, f"{r.ours:,.0f}", f"{r.peer:,.0f}", f"{r.ratio:.2f}", r.peer_name, str(r.pairs)]
        table.add_row(*row)
        lines.append("| " + " | ".join(row) + " |")
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{file}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"{file}.json").write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
