"""The `ratchet` command: the local stack up and down, and what else one does by hand.

The stack's own commands are here and call `deploy.devstack.stack`; the others live in their modules.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy import contract
from deploy.cli import dead_letters as dlq
from deploy.cli import keys as keys_command
from deploy.cli import lake as lake_command
from deploy.cli import tasks as tasks_command
from deploy.cli import topics as topics_command
from deploy.cli.forget import forget
from deploy.cli.loop import loop
from deploy.devstack import stack
from deploy.devstack.catalog import select
from deploy.devstack.config import StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.part import tail
from deploy.devstack.view import LiveProgress, show_failures, show_status

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Ratchet makes an LLM application better every week and never worse.

    [bold]ratchet up[/bold] starts everything on this machine; [bold]ratchet status[/bold] shows it;
    [bold]ratchet down[/bold] stops it. State lives in RATCHET_HOME (default: .ratchet here).""",
)
app.command()(loop)
app.add_typer(tasks_command.app, name="tasks")
app.command()(tasks_command.cycle)
app.command()(forget)
app.add_typer(keys_command.app, name="keys")
app.add_typer(topics_command.app, name="topics")
app.add_typer(dlq.app, name="dlq")
app.add_typer(lake_command.app, name="lake")
app.add_typer(contract.app, name="contract")
console = Console()

PARTS_HELP = f"Parts: {', '.join(stack.PARTS)}. Repeat the option, or write a,b."
Only = Annotated[list[str] | None, typer.Option("--only", metavar="PART", help=f"Only this part. {PARTS_HELP}")]
Without = Annotated[list[str] | None, typer.Option("--without", metavar="PART", help="All but this part.")]


@app.command()
def up(
    only: Only = None,
    without: Without = None,
    split: Annotated[bool, typer.Option("--split", help="A process for each service instead of one for all.")] = False,
    install: Annotated[bool, typer.Option("--install/--no-install", help="Install what is missing first.")] = True,
) -> None:
    """Start and health-check the broker, PostgreSQL, Unleash, vLLM and the services.

    What is missing is installed first, into RATCHET_TOOLS (default: tools/ in the home). What runs already is left
    alone, so a second `up` is harmless. A part that crashes later is started again.

    [bold]Examples[/bold]

      ratchet up                                      everything

      ratchet up --only kafka --only postgres         two parts

      ratchet up --without vllm                       all but one

      KAFKA_HOME=~/kafka_2.13-4.4.0 ratchet up        Apache Kafka instead of tansu (which is memory only)

      RATCHET_POSTGRES=postgresql://me@db/ratchet ratchet up     your own PostgreSQL; none is installed here

      RATCHET_KAFKA_PORT=39092 ratchet up             another port (also POSTGRES, UNLEASH, VLLM, GATEWAY, CONSOLE)
    """
    with LiveProgress(console, "Starting Ratchet") as progress, _errors_explained():
        config = stack.up(
            _names(only), without=_names(without) or (), split=split, installing=install, on_progress=progress
        )
    for part in select(_names(only), _names(without) or ()):
        if note := part.note(config):
            console.print(f"{part.name}: {note}", style="dim", soft_wrap=True)
    reach = f"How to reach it all: {config.home / 'stack.env'}. See it: [bold]ratchet status[/bold]"
    console.print(reach, soft_wrap=True)


@app.command()
def down(
    only: Only = None,
) -> None:
    """Stop what `up` started in this home, and nothing else.

    Processes are known by pid and start time, never by name. Your own broker, database, Unleash or vLLM stay as
    they are. State stays too: `ratchet up` goes on where it was (tansu forgets: it keeps everything in memory).
    """
    with LiveProgress(console, "Stopping Ratchet") as progress, _errors_explained():
        stopped = stack.down(_names(only), on_progress=progress)
    if not stopped:
        console.print("Nothing of this home is running.")


@app.command()
def status() -> None:
    """Show every part: state, pid, address, memory, log; own or external. Each is asked a real question.

    Exits with 1 when a part that `up` started is not well.
    """
    with _errors_explained():
        rows = stack.status()
    show_status(console, rows, StackConfig.load().home)
    ill = [row.part for row in rows if row.state not in ("ready", "stopped", "not installed")]
    raise typer.Exit(1 if ill else 0)


@app.command()
def install(parts: Annotated[list[str] | None, typer.Argument(help=PARTS_HELP)] = None) -> None:
    """Install what `up` needs, and start nothing. `up` does this itself; here you can do it ahead.

    [bold]Examples[/bold]

      ratchet install                                 everything (about 4 GB, two to five minutes)

      ratchet install vllm                            vLLM and the base model

      RATCHET_TOOLS=/opt/ratchet ratchet install      programs in a folder that several homes share
    """
    with LiveProgress(console, "Installing") as progress, _errors_explained():
        stack.install(_names(parts), on_progress=progress)


@app.command()
def logs(
    part: Annotated[str, typer.Argument(help="A part, or a service when split; `install-vllm` and the like work too.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is added.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines of the past.")] = 50,
) -> None:
    """Print the end of a part's log.

    [bold]Examples[/bold]

      ratchet logs services -f

      ratchet logs kafka -n 200
    """
    with _errors_explained():
        path = StackConfig.load().logs / f"{part}.log"
        if not path.exists():
            known = ", ".join(sorted(one.stem for one in path.parent.glob("*.log"))) or "none yet"
            raise PartError(f"there is no log {path}", f"Logs here: {known}")
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


class _errors_explained:  # noqa: N801  # used as `with _errors_explained():`
    """Turns our errors into a message with the way out, and exit code 1."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PartError):
            show_failures(console, {"": error})
            raise typer.Exit(1) from error
        if isinstance(error, stack.StackError):
            show_failures(console, error.failures)
            raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
