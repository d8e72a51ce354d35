"""`ratchet dlq`: what the services could not handle, and sending it again."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from schemas.catalog import SERVICES
from shared.letters import Letter, read_letters, replay_letters
from shared.settings import Settings

app = typer.Typer(no_args_is_help=True, help=__doc__)
console = Console()

Service = Annotated[str, typer.Argument(help=f"One of: {', '.join(SERVICES)}")]


def _known(service: str) -> str:
    if service not in SERVICES:
        raise typer.BadParameter(f"no such service: {service}. One of: {', '.join(SERVICES)}")
    return service


async def _read_all(settings: Settings) -> list[list[Letter]]:
    return await asyncio.gather(*(read_letters(settings, service) for service in SERVICES))


@app.command("list")
def list_letters() -> None:
    """How many dead letters wait, by service."""
    settings = Settings.load()
    table = Table("service", "waiting", "last error")
    waiting = asyncio.run(_read_all(settings))
    for service, letters in zip(SERVICES, waiting, strict=True):
        table.add_row(service, str(len(letters)), letters[-1].error[:100] if letters else "")
    console.print(table)


@app.command()
def show(service: Service, limit: Annotated[int, typer.Option(help="Newest letters shown.")] = 20) -> None:
    """The letters of a service: where each came from, why it failed, and its body."""
    for letter in asyncio.run(read_letters(Settings.load(), _known(service)))[-limit:]:
        console.rule(f"{letter.topic} · letter {letter.offset}", align="left")
        console.print(letter.error, style="red", markup=False)
        console.print(letter.value[:2_000].decode(errors="replace"), markup=False, highlight=False)


@app.command()
def replay(
    service: Service, limit: Annotated[int | None, typer.Option(help="Most letters sent; default: all.")] = None
) -> None:
    """Send a service's letters to it again, oldest first. What fails again becomes a letter again."""
    count = asyncio.run(replay_letters(Settings.load(), _known(service), limit))
    console.print(f"{count} letters sent again to {service}")
