"""What is seen in the terminal: each step with its bar, its time and what came of it. Plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_LINE_SECONDS = 10.0


class Bar:
    """One running step. Without a total it shows that something happens, and for how long."""

    def __init__(self, progress: Progress, task: TaskID, plain: Console | None) -> None:
        self._progress = progress
        self._task = task
        self._plain = plain
        self._printed = time.monotonic()

    def update(self, done: float | None = None, total: float | None = None, message: str = "") -> None:
        """Show how far the step is, and a word on it."""
        self._progress.update(self._task, completed=done, total=total, message=message)
        if self._plain is not None and time.monotonic() - self._printed > PLAIN_LINE_SECONDS:
            self._printed = time.monotonic()
            task = self._progress.tasks[0]
            share = f"{task.completed:.0f}/{task.total:.0f} " if task.total else ""
            left = f", {task.time_remaining:.0f} s left" if task.time_remaining else ""
            self._plain.print(f"    {share}{message} ({task.elapsed or 0:.0f} s{left})", markup=False)


class Show:
    """The terminal, and the clock of every step."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(width=None if sys.stdout.isatty() else 120)
        self.seconds: dict[str, float] = {}
        """Step to the time that it took so far, in order."""

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[Bar]:
        """Run a step: its name in the report, its title in the terminal."""
        started = time.monotonic()
        self.console.print(f"[bold cyan]▶ {title}[/]")
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[message]}", markup=False),
        )  # fmt: skip
        live = self.console.is_terminal
        try:
            with Progress(*columns, console=self.console, transient=True, disable=not live) as progress:
                task = progress.add_task(name, total=None, message="")
                yield Bar(progress, task, None if live else self.console)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
        self.console.print(f"  [green]✓[/] {name} [dim]{self.seconds[name]:.1f} s[/]")

    def say(self, text: str) -> None:
        """A line about what came of a step."""
        self.console.print(f"  {text}", highlight=False)

    def table(self, title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
        """A table of findings."""
        table = Table(title=title, title_justify="left", header_style="bold", show_lines=False, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, overflow="fold", justify="left" if number == 0 else "default")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self.console.print(table)
