"""The stack's view in a terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from deploy.devstack.stack import PartStatus
from deploy.devstack.view import LiveProgress, show_status

MARKUP = "[bold]x[/bold] :smile: [/nothing]"


def test_names_paths_and_messages_are_shown_as_they_are() -> None:
    output = io.StringIO()
    console = Console(file=output, width=300)
    home = Path("/homes") / MARKUP.replace("/", "")
    row = PartStatus("kafka", "failed", "own", 1, MARKUP, 0, home / "logs" / "kafka.log", MARKUP, 0)
    show_status(console, [row], home)
    with LiveProgress(console, MARKUP) as progress:
        progress("kafka", "failed", MARKUP)
    assert output.getvalue().count(MARKUP) == 3
    assert f"Ratchet in {home}" in output.getvalue()
