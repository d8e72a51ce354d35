"""`make bench`, or `python -m tests.benchmarks NAME…`: run benchmarks by name; all of them by default.

Each prints a table and writes it as Markdown and JSON to `results/`. They measure rates, so nothing else should run.
Exits with 1 once all have run, if one missed an aim.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from tests.benchmarks.table import take_missed

NAMES = (
    "spool", "redaction", "log", "soak", "confidence", "servers", "gateway", "dataset", "promotion", "evaluation",
    "rollout", "twelve_weeks", "training",
)  # fmt: skip


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(NAMES)}.")] = None,
    intents: Annotated[int | None, typer.Option(help="Of confidence: the number of intents, 77 for all.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="Of dataset: this part alone, and nothing is written.")] = None,
) -> None:
    """Run benchmarks, each against a peer in the same run where there is one."""
    chosen = names or NAMES
    if unknown := set(chosen) - set(NAMES):
        raise typer.BadParameter(f"no such benchmark: {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}")
    problems = []
    for name in chosen:
        options = {"confidence": {"intents": intents}, "dataset": {"parts": part}}.get(name, {})
        benchmark = importlib.import_module(f"tests.benchmarks.{name}")
        if problem := problem_of(functools.partial(benchmark.main, **options)):
            problems.append(f"{name}: {problem}")
    if problems:
        sys.exit("\n".join(problems))


def problem_of(benchmark: Callable[[], None]) -> str:
    """Run a benchmark. Returns which aims it missed, or how it ended itself; empty if all is well."""
    take_missed()
    try:
        benchmark()
    except SystemExit as end:
        return "" if not end.code else f"ended with {end.code}"
    missed = take_missed()
    return f"missed: {'; '.join(missed)}" if missed else ""


if __name__ == "__main__":
    typer.run(main)
