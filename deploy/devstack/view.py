"""How the local stack looks in a terminal: live progress, the status table."""

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
STATES = {"ready": "green", "starting": "yellow", "restarting": "yellow", "stopped": "dim", "not installed": "dim"}


class LiveProgress:
    """Give it to `stack.up` as `on_progress`: a line per part that changes in place; plain lines without a terminal."""

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
            self._console.print(f"{elapsed:6.1f} s  {part:<15} {stage:<10} {words}", highlight=False, soft_wrap=True)

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 2))
        with self._lock:
            rows = list(self._rows.items())
        for part, (stage, words) in rows:
            mark = Text("●", style=DONE[stage]) if stage in DONE else Spinner("dots")
            table.add_row(mark, part, Text(stage, style=DONE.get(stage, "yellow")), Text(words, style="dim"))
        table.caption = f"{self._title}, {time.monotonic() - self._began:.0f} s"
        return table


def status_table(rows: Sequence[PartStatus], home: Path) -> Table:
    """The table of `ratchet status`. Logs are shown relative to the home."""
    table = Table(box=SIMPLE, pad_edge=False)
    for column in ("part", "state", "whose", "pid", "memory", "address", "log"):
        table.add_column(column, overflow="fold", justify="right" if column in ("pid", "memory") else "left")
    for row in rows:
        state = f"{row.state} ({row.restarts} restarts)" if row.restarts else row.state
        log = str(row.log.relative_to(home)) if row.log and row.log.is_relative_to(home) else str(row.log or "")
        memory = f"{row.memory_bytes / 1e6:,.0f} MB" if row.memory_bytes else ""
        style = STATES.get(row.state, "red")
        table.add_row(row.part, Text(state, style), row.owner, str(row.pid or ""), memory, row.address, log)
    return table


def show_status(console: Console, rows: Sequence[PartStatus], home: Path) -> None:
    """The table, then what there is to say about a part."""
    console.print(f"Ratchet in {home}", style="bold", soft_wrap=True)
    console.print(status_table(rows, home))
    for row in rows:
        if row.detail:
            console.print(Text.assemble((f"{row.part}: ", STATES.get(row.state, "red")), row.detail), soft_wrap=True)
