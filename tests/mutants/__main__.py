"""`make mutants`: plant each fault of the catalog, and see that its test fails. Exit code 1 if one survives.

Interrupted, it goes on where it was: results of the same checkout are kept in RATCHET_HOME.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.conftest import shared_home
from tests.mutants import catalog
from tests.mutants.run import key, run_all, snapshot

STATE = "mutants.json"


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Rooms, such as spool; all by default.")] = None,
    workers: Annotated[int, typer.Option(help="Tests side by side.")] = os.cpu_count() or 1,
    again: Annotated[bool, typer.Option(help="Forget the results of this checkout.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Print the faults, and run nothing.")] = False,
) -> None:
    """Plant faults, each told as a fact, and run the tests that must see them."""
    console = Console(markup=False, emoji=False, highlight=False)
    if unknown := set(names or ()) - set(catalog.rooms()):
        raise typer.BadParameter(f"no such room: {', '.join(unknown)}; choose from {', '.join(catalog.rooms())}")
    rooms = {room: catalog.faults_of(room) for room in names or catalog.rooms()}
    faults = [fault for room in rooms.values() for fault in room]
    if list_only:
        for fault in faults:
            console.print(f"{fault.room}: {fault.fact} ({fault.file}; {fault.test})", soft_wrap=True)
        return
    if unplantable := catalog.problems(faults):
        sys.exit("\n".join(unplantable))

    file, of = shared_home() / STATE, snapshot()
    saved = json.loads(file.read_text()) if file.exists() and not again else {}
    results: dict[str, str] = saved["results"] if saved.get("snapshot") == of else {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        known = {key(fault) for fault in faults} & results.keys()
        bar = progress.add_task("faults", total=len(faults), completed=len(known))

        def ended(fault: catalog.Fault, survived: str) -> None:
            results[key(fault)] = survived
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"snapshot": of, "results": results}))
            progress.advance(bar)
            if survived:
                progress.print(f"SURVIVED: {fault.room}: {fault.fact}")

        broken = run_all(rooms, known, workers, ended)

    survivors = [fault for fault in faults if results.get(key(fault))]
    table, counts = Table("room", "faults", "seen"), Counter(fault.room for fault in faults)
    seen = Counter(fault.room for fault in faults if results.get(key(fault)) == "")
    for room, number in counts.items():
        table.add_row(room, str(number), str(seen[room]))
    table.add_row("all", str(len(faults)), str(seen.total()))
    console.print(table)
    for room, problem in broken.items():
        console.print(f"\n{room}: {problem}")
    for fault in survivors:
        console.print(
            f"\n{fault.room}: {fault.fact}\n{fault.file}; {fault.test}: {results[key(fault)]}", soft_wrap=True
        )
    if struck := catalog.struck():
        console.print("\nStruck, since what they were planted in is gone:")
        for entry in struck:
            console.print(f"  {entry.fact}: {entry.reason}", soft_wrap=True)
    if broken or survivors:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
