"""The help of every command teaches: what it does, with examples that exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from deploy.cli.app import app
from deploy.devstack.catalog import PARTS


def _commands(found: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the words of each command that does something, and the command."""
    subcommands = getattr(found, "commands", None)
    if subcommands is None:
        yield " ".join(words), found
        return
    for name, command in subcommands.items():
        yield from _commands(command, (*words, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", [words for words, command in COMMANDS.items() if command.params])
def test_the_help_of_a_command_that_takes_anything_shows_it_in_an_example(words: str) -> None:
    heading, found, examples = (COMMANDS[words].help or "").partition("[bold]Example")
    assert heading and found
    assert f"ratchet {words}" in examples


@pytest.mark.parametrize("words", ["up", "down", "install", "logs"])
def test_the_help_of_the_stack_names_every_part(words: str) -> None:
    texts = " ".join(getattr(param, "help", None) or "" for param in COMMANDS[words].params)
    assert f"Parts: {', '.join(PARTS)}." in texts


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_and_argument_of_a_command_says_what_it_is(words: str) -> None:
    texts = {param.name: getattr(param, "help", None) for param in COMMANDS[words].params}
    assert [name for name, text in texts.items() if not text and name != "help"] == []


@pytest.mark.parametrize(
    ("words", "option", "unit"),
    [
        ("keys create", "expires", "days"),
        ("keys create", "bytes_per_minute", "bytes"),
        ("keys rotate", "overlap", "hours"),
        ("shadow replay", "days", "days"),
        ("advise", "latency_budget", "ms"),
        ("advise", "cost_budget", "currency"),
        ("loop", "wrong_share", "0 to 1"),
    ],
)
def test_the_help_of_a_quantity_has_its_unit(words: str, option: str, unit: str) -> None:
    (text,) = [param.help for param in COMMANDS[words].params if param.name == option]
    assert unit in text.lower()
