"""`make bench`, or `python -m tests.benchmarks NAME…`: run benchmarks by name; all of them by default.

Each prints a table and writes it as Markdown and JSON to `results/`. They measure rates, so nothing else should run.
"""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

NAMES = (
    "spool", "redaction", "log", "soak", "confidence", "servers", "gateway", "dataset", "promotion", "evaluation",
    "rollout", "twelve_weeks",
)  # fmt: skip


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(NAMES)}.")] = None,
    intents: Annotated[int | None, typer.Option(help="Of confidence: the number of intents, 77 for all.")] = None,
) -> None:
    """Run benchmarks, each against a peer in the same run where there is one."""
    chosen = names or NAMES
    if unknown := set(chosen) - set(NAMES):
        raise typer.BadParameter(f"no such benchmark: {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}")
    for name in chosen:
        options = {"intents": intents} if name == "confidence" else {}
        importlib.import_module(f"tests.benchmarks.{name}").main(**options)


if __name__ == "__main__":
    typer.run(main)
