"""The commands of `ratchet`: what is wrong with the arguments of one, and where each is called for real."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import typer.main
from typer import Abort, BadParameter
from typer._click.exceptions import UsageError

from deploy.cli.app import app

COMMANDS: Any = typer.main.get_command(app)
ONCE = {
    "up": "up",
    "install": "install postgres",
    "logs": "logs services --lines 1",
    "status": "status",
    "tasks check": "tasks check my-task.yaml",
    "train": "train support-desk --estimate",
    "golden suggest": "golden suggest support-desk --part sample 5",
    "keys list": "keys list",
    "keys rotate": "keys rotate shop",
    "keys revoke": "keys revoke --app shop",
    "topics correct": "topics correct",
    "lake resume": "lake resume",
    "contract generate": "contract generate",
}
"""Commands that no block of the documentation runs, with their smallest arguments. They run after the blocks."""
ELSEWHERE = {
    "loop": ("Makefile", "$(BIN)/ratchet loop"),
    "down": ("Makefile", "$(BIN)/ratchet down"),
    "contract check": ("Makefile", "$(BIN)/ratchet contract check"),
    "lake media": ("tests/unit/deploy/cli/test_lake.py", '["lake", "media", '),
    # tests/e2e/test_rollouts.py runs the page.
    **{
        f"rollout {name}": ("docs/how-to/control-a-rollout.md", f"ratchet rollout {name}")
        for name in ("status", "pause", "resume", "promote", "rollback")
    },
}
"""Commands that need another stack than the blocks': the file that runs each, and the text that does."""


def all_commands(found: Any = COMMANDS, words: tuple[str, ...] = ()) -> Iterator[str]:
    """The words of every command that does something."""
    if not (below := getattr(found, "commands", None)):
        yield " ".join(words)
        return
    for name, command in below.items():
        yield from all_commands(command, (*words, name))


def command_of(words: Sequence[str]) -> str:
    """The command of a whole line: `rollout pause`, of `rollout pause support-desk`."""
    return " ".join(words[: 2 if hasattr(COMMANDS.commands.get(words[0]), "commands") else 1])


def command_fault(words: Sequence[str], *, whole: bool = True) -> str | None:
    """What is wrong with the words after `ratchet`; None if nothing is.

    Not `whole`: a text names the command, maybe without its arguments, or with names in their place.
    """
    found, rest, whole = COMMANDS, [word for word in words if word != "--help"], whole and "--help" not in words
    while commands := getattr(found, "commands", None):
        if not rest:
            return "a command is missing" if whole else None
        if rest[0] not in commands:
            return f"there is no command {rest[0]}"
        found, rest = commands[rest[0]], rest[1:]
    try:
        with mock.patch("sys.stdin", io.StringIO()):  # What is asked for in a terminal is missing.
            found.make_context("ratchet", rest)
    except (Abort, BadParameter) as error:
        return f"{error or 'an option is missing'}" if whole else None
    except UsageError as error:
        return error.format_message()
    return None
