"""`ratchet up`, `down`, `status`, `install` and `logs`: the local stack, which `deploy.devstack` runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.output import console, say
from deploy.devstack.config import StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.part import tail

PARTS_HELP = "Parts: s3, kafka, postgres, unleash, vllm, models, services."
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="PART", help=f"Only this part; repeatable, or a,b. {PARTS_HELP}")
]


def up(only: Only = None) -> None:
    """Start and health-check the broker, PostgreSQL, Unleash, vLLM and the services.

    What is missing is installed first, into RATCHET_TOOLS (default: tools/ in the home). What runs already is left
    alone, so a second `up` is harmless. A part that crashes later is started again.

    [bold]Examples[/bold]

      ratchet up                                      everything

      ratchet up --only kafka --only postgres         two parts

      KAFKA_HOME=~/kafka_2.13-4.4.0 ratchet up        Apache Kafka instead of tansu

      RATCHET_POSTGRES=postgresql://me@db/ratchet ratchet up     your own PostgreSQL; none is installed here

      RATCHET_STORAGE=s3 ratchet up                   the lake and the artifacts in the stack's S3 server

      RATCHET_KAFKA_PORT=39092 ratchet up             another port (also POSTGRES, UNLEASH, VLLM, GATEWAY, CONSOLE)
    """
    from deploy.devstack import catalog, stack, view

    parts = _names(only)
    with view.LiveProgress(console, "Starting Ratchet") as progress:
        config = stack.up(parts, on_progress=progress)
    for part in catalog.select(config, parts):
        if note := part.note(config):
            say(f"{part.name}: {note}", "dim")
    say(f"Addresses and passwords: {config.home / 'stack.env'}. What runs: ratchet status")


def down(only: Only = None) -> None:
    """Stop what `up` started in this home, and nothing else.

    Processes are identified by pid and start time, never by name. Your own broker, database, Unleash or vLLM stay as
    they are. State stays too: `ratchet up` continues from it.

    [bold]Examples[/bold]

      ratchet down

      ratchet down --only services && ratchet up      restarts the services alone
    """
    from deploy.devstack import stack, view

    names = _names(only)
    with view.LiveProgress(console, "Stopping Ratchet") as progress:
        stopped = stack.down(names, on_progress=progress)
    if not stopped:
        say(f"{', '.join(names)}: not running." if names else "Nothing of this home is running.")


def status() -> None:
    """Show every part: state, pid, address, memory, log; own or external. Each part is asked for a real answer.

    Exits with 1 when a part that `up` started is unhealthy.
    """
    from deploy.devstack import stack, view

    rows = stack.status()
    view.show_status(console, rows, StackConfig.load().home)
    raise typer.Exit(any(row.state not in ("ready", "stopped") for row in rows))


def install(parts: Annotated[list[str] | None, typer.Argument(help=f"{PARTS_HELP} Default: all.")] = None) -> None:
    """Install what `up` needs, and start nothing. `up` does this itself; use this to do it ahead.

    [bold]Examples[/bold]

      ratchet install                                 everything (about 4 GB, two to five minutes)

      ratchet install vllm                            vLLM and the base model

      RATCHET_TOOLS=/opt/ratchet ratchet install      programs in a folder that several homes share
    """
    from deploy.devstack import stack, view

    with view.LiveProgress(console, "Installing") as progress:
        stack.install(_names(parts), on_progress=progress)


def logs(
    part: Annotated[str, typer.Argument(help=f"{PARTS_HELP} install-vllm and the like, too.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue printing what is added.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 50,
) -> None:
    """Print the end of a part's log.

    [bold]Examples[/bold]

      ratchet logs services -f

      ratchet logs kafka -n 200
    """
    path = StackConfig.load().logs / f"{part}.log"
    if not path.exists():
        available = ", ".join(sorted(log.stem for log in path.parent.glob("*.log"))) or "none yet"
        raise PartError(f"there is no log {path}", f"Logs here: {available}")
    typer.echo(tail(path, lines, max_bytes=2_000_000))
    if follow:
        _follow(path)


def _follow(path: Path) -> None:
    with path.open(errors="replace") as file:
        file.seek(0, 2)
        while True:
            text = file.read()
            typer.echo(text, nl=False) if text else time.sleep(0.3)


def _names(given: list[str] | None) -> list[str] | None:
    """`--only a,b --only c` → [a, b, c]."""
    names = [name.strip() for text in given or () for name in text.split(",") if name.strip()]
    return names or None
