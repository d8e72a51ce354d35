"""`ratchet lake`: how far the lake has read the topics, how to resume after a broker lost them, and kept media."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.output import say, show_blocks
from shared.errors import RatchetError
from shared.files import write_atomically
from shared.report.blocks import Table, Tag
from shared.settings import INCARNATION_FILE, Settings
from shared.storage.media import MediaReader

if TYPE_CHECKING:
    from services.prediction_log.offsets.lag import TopicLag

HELP = "The lake: how far it has read the topics, how to resume after a broker lost them, and kept media."
app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show how far the lake has read each topic, how many records wait, and what would stop the writer.

    Exits with 1 when something is wrong. The lake is the authority on how far it was filled: its offsets are in
    the same commits as its rows, and Kafka's consumer groups do not count. If deleted, it fills itself again from the
    start of the topics as soon as prediction_log runs.

    [bold]Example[/bold]

      ratchet lake status --json
    """
    settings = Settings.load()
    tables = _topic_lags(settings)
    if as_json:
        rows = [asdict(table) for table in tables]
        typer.echo(json.dumps({"lake": settings.lake_uri, "incarnation": settings.kafka_incarnation, "tables": rows}))
    else:
        _show(settings, tables)
        if any(table.stops for table in tables):
            say("prediction_log stops there and discards nothing. To resume: ratchet lake resume --help")
    raise typer.Exit(any(table.stops or (table.problem and table.rows) for table in tables))


@app.command()
def resume(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also when lake and broker agree: read all again.")] = False,
) -> None:
    """Resume with a broker that lost its topics: they are read from their start, and the lake keeps all its rows.

    Offsets say which records were stored. After a broker came back empty the same offsets mean other records, and
    resuming from them would discard new records as old ones. So prediction_log stops, and a person decides: bring
    the old topics back (a backup, the right address), and it resumes by itself; or, if they are gone for good, run
    this.

    The new topics become another incarnation of the broker: they are read from their start, by every service that
    stores offsets. Nothing is deleted, and a record that is in the lake already is recognised by its id, so no row
    doubles. Events that were only on the lost topics are lost with them; what a gateway has not shipped yet is not.

    [bold]Examples[/bold]

      ratchet lake status                what is wrong

      ratchet lake resume --dry-run       what would be done

      ratchet lake resume --yes && ratchet down --only services && ratchet up
    """
    settings = Settings.load()
    tables = _topic_lags(settings)
    _show(settings, tables)
    if not force and not any(table.stops for table in tables):
        say("The lake and the broker agree: there is nothing to resume from. Nothing was changed.")
        return
    say(
        f"The {sum(table.waiting for table in tables):,} records that are on the broker now are read from their start. "
        f"The lake keeps its {sum(table.rows for table in tables):,} rows; records that it has already are recognised "
        "by their ids."
    )
    if dry_run:
        return
    if not yes:
        typer.confirm("Are the old topics gone for good?", abort=True, err=True)
    _write_incarnation(settings)
    name = Settings.load(home=settings.home).kafka_incarnation
    say(f"The broker's incarnation is {name} now; {settings.home / INCARNATION_FILE} says so.")
    say("Restart the services: ratchet down --only services && ratchet up")
    say(f"Where services run with a home of their own, set RATCHET_KAFKA_INCARNATION={name} for all of them.")


@app.command()
def media(
    key: Annotated[str, typer.Argument(help="The `key` of a `media` in an event or a row of the lake.")],
    file: Annotated[Path, typer.Argument(help="Where to write it.")],
) -> None:
    """Decrypt a picture, a sound or a document of a task with `media: keep`, and write it to a file.

    What you see may be personal data: media are encrypted, and never redacted.

    [bold]Example[/bold]

      ratchet lake media media/support-desk/2026-10-03/anonymous/5f0c… picture.png
    """
    settings = Settings.load()
    try:
        content = MediaReader.open(settings.artifacts_uri, settings.secrets_folder).file(key).content
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    write_atomically(file, content)
    say(f"{len(content):,} bytes in {file}. This may be personal data: it was not redacted.", "yellow")


def _topic_lags(settings: Settings) -> list[TopicLag]:
    from services.prediction_log.offsets.lag import topic_lags

    return asyncio.run(topic_lags(settings))


def _write_incarnation(settings: Settings) -> None:
    path = settings.home / INCARNATION_FILE
    try:
        write_atomically(path, f"{datetime.now(UTC):%Y%m%dT%H%M%S}".encode())
    except OSError as error:
        raise RatchetError(f"{path} was not written: {error}", "Make the folder writable, then try again.") from error


def _show(settings: Settings, tables: Sequence[TopicLag]) -> None:
    rows = [
        (
            table.table, table.rows, table.topic, table.read, table.waiting,
            Tag(table.problem or "ok", "bad" if table.stops else "open" if table.problem else "good"),
        )
        for table in tables
    ]  # fmt: skip
    say(f"{settings.lake_uri} and {settings.kafka}")
    show_blocks(Table(("table", "rows", "topic", "read", "waiting", ""), rows, whole=("topic",)))
