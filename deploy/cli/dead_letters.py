"""`ratchet dlq`: what the services could not handle, and sending it again."""

from __future__ import annotations

import asyncio
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from schemas.catalog import SERVICES
from shared.errors import RatchetError
from shared.kafka.dead_letters import (
    MAX_SHOWN,
    DeadLetter,
    PendingDeadLetters,
    count_pending,
    read_dead_letters,
    replay_dead_letters,
)
from shared.settings import Settings

HELP = """What the services could not handle: look at it, mend the cause, send it again.

A message that can never succeed is kept, encrypted, in its service's dead-letter topic, and its partition moves on.
A database or a broker that is away makes no dead letters: those messages wait.

[bold]Steps[/bold]

  ratchet dlq list                     which services have letters, and why the last one failed

  ratchet dlq show prediction_log      the letters, opened: reason and body (may be personal data)

  ratchet dlq replay prediction_log    once the cause is mended: to that service alone, oldest first
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)
console = Console()
MOST_BYTES = 2_000
"""Of a letter's body that `show` prints."""

Service = Annotated[str, typer.Argument(help=f"One of: {', '.join(SERVICES)}")]


def _known(service: str) -> str:
    if service not in SERVICES:
        raise typer.BadParameter(f"no such service: {service}. One of: {', '.join(SERVICES)}")
    return service


def _give_up(error: RatchetError) -> NoReturn:
    console.print(error.reason, style="red", markup=False)
    console.print(error.way_out, markup=False)
    raise typer.Exit(1) from error


async def _count_all(settings: Settings) -> list[PendingDeadLetters]:
    return await asyncio.gather(*(count_pending(settings, service) for service in SERVICES))


@app.command("list")
def list_letters() -> None:
    """How many dead letters wait, by service, and of what kind the last failure was."""
    table = Table("service", "waiting", "last failed", "at")
    try:
        waiting = asyncio.run(_count_all(Settings.load()))
    except RatchetError as error:
        _give_up(error)
    for service, found in zip(SERVICES, waiting, strict=True):
        # Only the kind: the words of an error may quote the message, and nobody asked to see that here.
        kind, when = (found.last.error.split(":")[0][:60], found.last.failed_at[:19]) if found.last else ("", "")
        table.add_row(service, str(found.count), kind, when)
    console.print(table)


@app.command()
def show(
    service: Service,
    limit: Annotated[int, typer.Option(min=1, max=MAX_SHOWN, help="Newest letters shown.")] = 20,
) -> None:
    """The letters of a service, opened: where each came from, why it failed, and its body.

    Letters lie encrypted on the broker. What you see may be personal data: it was not redacted.
    """
    try:
        letters = asyncio.run(read_dead_letters(Settings.load(), _known(service), limit))
    except RatchetError as error:
        _give_up(error)
    for letter in letters:
        _print(letter)
    if letters:
        console.print("This may be personal data: it is encrypted on the broker, and was not redacted.", style="yellow")


def _print(letter: DeadLetter) -> None:
    replayed = f" · replayed {letter.replayed} times" if letter.replayed else ""
    console.rule(f"{letter.origin} · letter {letter.offset} · {letter.failed_at[:19]}{replayed}", align="left")
    console.print(letter.error, style="red", markup=False)
    if letter.broken:
        console.print(letter.broken.way_out, markup=False)
    console.print(letter.value[:MOST_BYTES].decode(errors="replace"), markup=False, highlight=False)
    if (more := len(letter.value) - MOST_BYTES) > 0:
        console.print(f"… and {more} bytes more", style="dim")


@app.command()
def replay(
    service: Service,
    limit: Annotated[int | None, typer.Option(min=1, help="Most letters sent; default: all.")] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave behind, for good, letters that no key opens.")
    ] = False,
) -> None:
    """Send a service's letters to it again, as they were, oldest first. What fails again becomes a letter again."""
    try:
        count = asyncio.run(replay_dead_letters(Settings.load(), _known(service), limit, skip_broken=skip_broken))
    except RatchetError as error:
        _give_up(error)
    console.print(f"{count} letters sent again to {service}")
