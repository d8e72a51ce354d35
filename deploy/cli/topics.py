"""`ratchet topics`: the broker's topics beside the catalog's, and setting them as the catalog says."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.table import Table

from shared.errors import RatchetError
from shared.kafka.topics import Drift, correct_topics, create_topics, find_drift, wanted_topics
from shared.settings import Settings

app = typer.Typer(no_args_is_help=True, help=__doc__)
console = Console()


def _give_up(error: RatchetError) -> NoReturn:
    console.print(error.reason, style="red", markup=False)
    console.print(error.way_out, markup=False)
    raise typer.Exit(1) from error


@app.command("list")
def list_topics() -> None:
    """Every topic of the catalog, and where the broker's differs. Ends with 1 where one does.

    Missing topics are created when services start; what exists is never changed by them.
    """
    settings = Settings.load()
    try:
        drift = find_drift(settings)
    except RatchetError as error:
        _give_up(error)
    table = Table("topic", "partitions", "kept", "on the broker")
    for topic in wanted_topics(settings):
        differing = [one for one in drift if one.topic == topic.name]
        told = "\n".join(f"{one.setting} {one.found}, not {one.wanted}" for one in differing)
        table.add_row(topic.name, str(topic.partitions), _kept(topic.configs), told or "the same")
    console.print(table)
    if any(one.correctable for one in drift):
        console.print("To set the topics as the catalog says: ratchet topics correct")
    if drift:
        raise typer.Exit(1)


@app.command()
def correct() -> None:
    """Create missing topics, and set the others' retention, compaction and size limit as the catalog says.

    Partitions and replication stay: keys would move to other partitions. A shorter retention deletes records.
    """
    settings = Settings.load()
    try:
        created, corrected, left = create_topics(settings), correct_topics(settings), find_drift(settings)
    except RatchetError as error:
        _give_up(error)
    for name in created:
        console.print(f"{name}: created", markup=False)
    _tell(corrected, "set")
    _tell(left, "left as it is")
    console.print(f"{len(created)} created, {len(corrected)} settings corrected, {len(left)} differ still")


def _tell(drift: list[Drift], done: str) -> None:
    for one in drift:
        console.print(f"{one}: {done}", markup=False)


def _kept(configs: dict[str, str]) -> str:
    milliseconds = int(configs["retention.ms"])
    if configs["cleanup.policy"] == "compact":
        return "last value per key"
    days = milliseconds // 86_400_000
    return "forever" if milliseconds < 0 else f"{days} day{'s' if days != 1 else ''}"
