"""The local stack in a terminal: live progress, and the status table. No text is read as markup or emoji."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deploy.devstack.stack import PartStatus

DONE = {"ready": "green", "external": "cyan", "failed": "red", "stopped": "green"}
STATES = {"ready": "green", "starting": "yellow", "restarting": "yellow", "stopped": "dim"}


class LiveProgress:
    """The `on_progress` of `stack.up` in a terminal: a line per part that is updated in place.

    Without a terminal it prints a line per change.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[str, str]] = {}
        self._began = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> LiveProgress:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, part: str, stage: str, words: str) -> None:
        with self._lock:
            if self._rows.get(part) == (stage, words):
                return
            new_stage = self._rows.get(part, ("", ""))[0] != stage
            self._rows[part] = (stage, words)
        if self._live is None and (words or new_stage):
            elapsed = time.monotonic() - self._began
            self._console.print(Text(f"{elapsed:6.1f} s  {part:<15} {stage:<10} {words}"), soft_wrap=True)

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 2))
        with self._lock:
            rows = list(self._rows.items())
        for part, (stage, words) in rows:
            icon = Text("●", DONE[stage]) if stage in DONE else Spinner("dots")
            table.add_row(icon, Text(part), Text(stage, DONE.get(stage, "yellow")), Text(words, "dim"))
        table.caption = f"{self._title}, {time.monotonic() - self._began:.0f} s"
        return table


def status_table(rows: Sequence[PartStatus], home: Path) -> Table:
    """Return the table of `ratchet status`. Logs are shown relative to the home."""
    table = Table(box=SIMPLE, pad_edge=False)
    for column in ("part", "state", "whose", "pid", "memory", "address", "log"):
        table.add_column(column, overflow="fold", justify="right" if column in ("pid", "memory") else "left")
    for row in rows:
        state = f"{row.state} ({row.restarts} restarts)" if row.restarts else row.state
        log = str(row.log.relative_to(home)) if row.log and row.log.is_relative_to(home) else str(row.log or "")
        memory = f"{row.memory_bytes / 1e6:,.0f} MB" if row.memory_bytes else ""
        cells = (row.owner, str(row.pid or ""), memory, row.address, log)
        table.add_row(Text(row.part), Text(state, STATES.get(row.state, "red")), *map(Text, cells))
    return table


def show_status(console: Console, rows: Sequence[PartStatus], home: Path) -> None:
    """Print the table, then the details of the parts that have any."""
    console.print(Text(f"Ratchet in {home}", "bold"), soft_wrap=True)
    console.print(status_table(rows, home))
    for row in rows:
        if row.detail:
            console.print(Text.assemble((f"{row.part}: ", STATES.get(row.state, "red")), row.detail), soft_wrap=True)
