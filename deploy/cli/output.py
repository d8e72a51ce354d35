"""Standard output and standard error of the command. No text is read as markup or emoji: names stay as they are."""

from __future__ import annotations

from rich.console import Console

console = Console(markup=False, emoji=False, highlight=False)
stderr = Console(markup=False, emoji=False, highlight=False, stderr=True)


def say(text: str, style: str = "") -> None:
    """Print a line of the result; a long one is not wrapped, so that it can be copied and searched."""
    console.print(text, style=style, soft_wrap=True)


def warn(text: str, style: str = "") -> None:
    """Print a line that explains, beside the result."""
    stderr.print(text, style=style, soft_wrap=True)
