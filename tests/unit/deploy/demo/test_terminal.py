"""The demonstration's terminal prints users' texts as they are."""

from __future__ import annotations

import io

from rich.console import Console

from deploy.demo.terminal import Terminal
from shared.report.blocks import Table


def test_no_text_is_read_as_markup_or_emoji() -> None:
    output, odd = io.StringIO(), "root:x:0 [bold]x[/bold]"
    terminal = Terminal(Console(file=output, width=200))
    with terminal.step("step", odd) as progress:
        progress.update(1, 2, odd)
    terminal.say(odd, (odd, "red"))
    terminal.show(Table(("column",), [(odd,)], odd))
    assert output.getvalue().count(odd) == 5
    assert "step" in terminal.seconds
