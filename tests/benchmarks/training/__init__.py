"""Training: methods by accuracy, memory and time; speed beside TRL; memory as estimated; a sweep; preferences."""

from __future__ import annotations

import importlib

PARTS = ("methods", "speed", "memory", "sweep", "preferences")


def main() -> None:
    """Run all parts, one after the other; each writes a result of its own."""
    for part in PARTS:
        importlib.import_module(f"tests.benchmarks.training.{part}").main()
