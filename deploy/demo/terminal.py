"""Shows each step in the terminal, with its progress, its time and its result; plain lines in a log file.

No text is read as markup: it may quote a user's data.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from shared.report.blocks import Block
from shared.report.terminal import print_blocks

PLAIN_LINE_SECONDS = 10.0


class StepProgress:
    """The progress of a running step. Without a total it shows only that the step runs, and for how long."""

    def __init__(self, progress: Progress, task: TaskID, plain: Console | None) -> None:
        """`plain`: where lines are printed now and then if there is no terminal with a progress bar."""
        self._progress = progress
        self._task = task
        self._plain = plain
        self._printed_at = time.monotonic()

    def update(self, done: float | None = None, total: float | None = None, message: str = "") -> None:
        """Show how far the step is, and a few words about it."""
        self._progress.update(self._task, completed=done, total=total, message=message)
        if self._plain is not None and time.monotonic() - self._printed_at > PLAIN_LINE_SECONDS:
            self._printed_at = time.monotonic()
            task = self._progress.tasks[0]
            count = f"{task.completed:.0f}/{task.total:.0f} " if task.total else ""
            remaining = f", {task.time_remaining:.0f} s left" if task.time_remaining else ""
            self._plain.print(Text(f"    {count}{message} ({task.elapsed or 0:.0f} s{remaining})"))


class Terminal:
    """The terminal, and the duration of every step."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(width=None if sys.stdout.isatty() else 120)
        self.seconds: dict[str, float] = {}
        """Step → its duration so far, in order."""

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[StepProgress]:
        """Time a step: `name` is for the report, `title` for the terminal."""
        started = time.monotonic()
        self._console.print(Text(f"▶ {title}", "bold cyan"))
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[message]}", markup=False),
        )  # fmt: skip
        live = self._console.is_terminal
        try:
            with Progress(*columns, console=self._console, transient=True, disable=not live) as progress:
                task = progress.add_task(name, total=None, message="")
                yield StepProgress(progress, task, None if live else self._console)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
        self.say(("✓", "green"), f" {name} ", (f"{self.seconds[name]:.1f} s", "dim"))

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Print a line about the result of a step; a part is a text, or a text and its style."""
        self._console.print(Text.assemble("  ", *parts))

    def show(self, *blocks: Block) -> None:
        """Print blocks of a report."""
        print_blocks(blocks, self._console)
