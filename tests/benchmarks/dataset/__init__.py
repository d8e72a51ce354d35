"""What a dataset is worth, and what it costs: builds, leaks, users' edits, learning, held-out rows and label noise.

Each part is a module whose `measure` returns figures and tables. A run of all parts writes the report; `--part NAME`
runs and prints only that part. `RATCHET_BENCH_EXAMPLES` (default 100,000) makes the builds smaller. Exits with 1 if an
aim is missed.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import typer

from tests.benchmarks.table import Grid, Measured, report

PARTS = ("builds", "sessions", "authors", "learning", "held_out", "noise")
"""Builds are the first: their seconds want the quiet machine that the others need not have."""


def main(parts: Sequence[str] | None = None) -> None:
    """Run these parts and print their figures, or all parts and write the report."""
    if unknown := sorted(set(parts or ()) - set(PARTS)):
        raise typer.BadParameter(f"no such part: {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    measured, grids = list[Measured](), list[Grid]()
    for part in parts or PARTS:
        figures, tables = importlib.import_module(f"{__name__}.{part}").measure()
        measured += figures
        grids += tables
    report([], "dataset", measured, grids, write=not parts)
