"""The local stack in a terminal: live progress, and the status table. No text is read as markup or emoji."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deploy.devstack.stack import PartStatus
from shared.report.blocks import Table as StatusTable
from shared.report.blocks import Tag, Tone
from shared.report.blocks import Text as Note
from shared.report.terminal import print_blocks

DONE = {"ready": "green", "external": "cyan", "failed": "red", "stopped": "green"}
TONES: dict[str, Tone] = {"ready": "good", "starting": "open", "restarting": "open", "stopped": "note"}


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


def show_status(console: Console, rows: Sequence[PartStatus], home: Path) -> None:
    """Print the table, with logs relative to the home, then the details of the parts that have any."""
    cells = [
        (
            row.part,
            Tag(f"{row.state} ({row.restarts} restarts)" if row.restarts else row.state, TONES.get(row.state, "bad")),
            row.owner,
            row.pid,
            f"{row.memory_bytes / 1e6:,.0f} MB" if row.memory_bytes else None,
            row.address,
            os.path.relpath(row.log, home) if row.log else None,
        )
        for row in rows
    ]
    columns = ("part", "state", "whose", "pid", "memory", "address", "log")
    details = [Note(row.detail, TONES.get(row.state, "bad"), row.part) for row in rows if row.detail]
    print_blocks([Note(f"Ratchet in {home}"), StatusTable(columns, cells), *details], console)
