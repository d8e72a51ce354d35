"""`ratchet lake`: how far the lake has read the topics, and going on after a broker lost them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from shared.errors import RatchetError
from shared.files import write_atomically
from shared.settings import INCARNATION_FILE, Settings

if TYPE_CHECKING:
    from services.prediction_log.offsets.lag import TopicLag

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=__doc__)
console = Console()

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def status(as_json: AsJson = False) -> None:
    """How far the lake has read each topic, how many records wait, and what would stop the writer.

    Exits with 1 when something is wrong. The lake is the authority on how far it was filled: its positions are in
    the same commits as its rows, and Kafka's consumer groups do not count. Deleted, it fills itself again from the
    start of the topics as soon as prediction_log runs.
    """
    with _explained():
        settings = Settings.load()
        found = _topic_lags(settings)
    if as_json:
        rows = [asdict(one) for one in found]
        typer.echo(json.dumps({"lake": settings.lake_uri, "incarnation": settings.kafka_incarnation, "tables": rows}))
    else:
        _show(settings, found)
        if any(one.stops for one in found):
            console.print("prediction_log stops there and discards nothing. The way on: ratchet lake go-on --help")
    raise typer.Exit(1 if any(one.stops or (one.problem and one.rows) for one in found) else 0)


@app.command("go-on")
def go_on(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also when lake and broker agree: read all again.")] = False,
) -> None:
    """Go on with a broker that lost its topics: they are read from their start, and the lake keeps all it has.

    Offsets say which records were stored. After a broker came back empty the same numbers mean other records, and
    going on by them would throw new records away as old ones. So prediction_log stops, and a person decides: bring
    the old topics back (a backup, the right address), and it goes on by itself; or, if they are gone for good, this.

    The new topics become another incarnation of the broker: they are read from their start, by every service that
    keeps offsets. Nothing is deleted, and a record that is in the lake already is recognised by its id, so no row
    doubles. Events that lay only on the lost topics are lost with them; what a gateway has not shipped yet is not.

    [bold]Examples[/bold]

      ratchet lake status                what is wrong

      ratchet lake go-on --dry-run       what would be done

      ratchet lake go-on --yes && ratchet down --only services && ratchet up
    """
    with _explained():
        settings = Settings.load()
        found = _topic_lags(settings)
    _show(settings, found)
    if not force and not any(one.stops for one in found):
        console.print("The lake and the broker agree: there is nothing to go on from. Nothing was changed.")
        return
    waiting = sum(one.waiting for one in found)
    console.print(
        f"The {waiting:,} records that are on the broker now are read from their start. The lake keeps its "
        f"{sum(one.rows for one in found):,} rows; records that it has already are recognised by their ids.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if dry_run:
        return
    if not yes:
        typer.confirm("Are the old topics gone for good?", abort=True, err=True)
    with _explained():
        _name_incarnation(settings)
    _tell(Settings.load(home=settings.home))


def _topic_lags(settings: Settings) -> list[TopicLag]:
    # Here and not above: every other command would wait for Delta's libraries to load.
    from services.prediction_log.offsets.lag import topic_lags

    return asyncio.run(topic_lags(settings))


def _name_incarnation(settings: Settings) -> None:
    path = settings.home / INCARNATION_FILE
    try:
        write_atomically(path, f"{datetime.now(UTC):%Y%m%dT%H%M%S}".encode())
    except OSError as error:
        raise RatchetError(f"{path} was not written: {error}", "Free the folder, then say it again.") from error


def _tell(settings: Settings) -> None:
    name = settings.kafka_incarnation
    console.print(
        f"The broker's incarnation is {name} now; {settings.home / INCARNATION_FILE} says so.", soft_wrap=True
    )
    console.print("Restart the services: ratchet down --only services && ratchet up", highlight=False)
    console.print(
        f"Where services run with a home of their own, set RATCHET_KAFKA_INCARNATION={name} for all of them.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _show(settings: Settings, found: Sequence[TopicLag]) -> None:
    table = Table("table", "rows", "topic", "read", "waiting", "")
    for one in found:
        style = "red" if one.stops else "yellow" if one.problem else None
        counts = (f"{one.read:,}", f"{one.waiting:,}")
        table.add_row(one.table, f"{one.rows:,}", one.topic, *counts, one.problem or "well", style=style)
    console.print(f"{settings.lake_uri} and {settings.kafka}", highlight=False, soft_wrap=True)
    console.print(table)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RatchetError as error:
        console.print(f"{error.reason}\n{error.way_out}".strip(), style="red", highlight=False, markup=False)
        raise typer.Exit(1) from error
