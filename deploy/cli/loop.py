"""`ratchet loop`: the arguments, the stack, one turn, and an exit code that a machine can trust."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from deploy.demo.stack import bring_up, take_down
from deploy.demo.state import Options, Result
from deploy.demo.story import play, read_parts
from deploy.demo.terminal import Show
from deploy.devstack.errors import PartError
from shared.errors import RatchetError


def loop(
    data: Annotated[Path | None, typer.Option(help="Your own CSV file instead of the shipped support desk.")] = None,
    text: Annotated[str, typer.Option(help="Its column of texts.")] = "text",
    label: Annotated[str, typer.Option(help="Its column of labels.")] = "label",
    labels: Annotated[int, typer.Option(min=2, max=100, help="How many of its most frequent labels to take.")] = 10,
    corrections: Annotated[
        int | None, typer.Option(min=12, help="Most corrections of a label; 40 without it. Training takes longer.")
    ] = None,
    task_name: Annotated[str | None, typer.Option(help="Name of the task; else from the file.")] = None,
    report: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")] = Path("report"),
    shuffle_labels: Annotated[
        bool, typer.Option("--shuffle-labels", help="Teach nonsense: the candidate must be stopped.")
    ] = False,
    prove_rollback: Annotated[
        bool, typer.Option("--prove-rollback", help="Afterwards move rollback and primary by hand, timed.")
    ] = False,
    down: Annotated[bool, typer.Option("--down/--keep-running", help="Stop the stack afterwards.")] = False,
    wrong_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of answers wrong on purpose.")] = 0.05,
    disagree_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of questions put to a second person: at odds on purpose.")
    ] = 0.25,
    seed: Annotated[int, typer.Option(help="Which rows go where, and who errs when.")] = 20,
) -> None:
    """One turn of the wheel on real components: from a production request to a promoted adapter."""
    options = Options(
        data=data, text=text, label=label, labels=labels, corrections=corrections, task_name=task_name,
        report=report, shuffle_labels=shuffle_labels, prove_rollback=prove_rollback, wrong_share=wrong_share,
        disagree_share=disagree_share, seed=seed,
    )  # fmt: skip
    show = Show()
    try:
        result = run(options, show, down)
    except (RatchetError, PartError) as error:
        show.console.print(f"[bold red]✗[/] {error.reason}", highlight=False, soft_wrap=True)
        if error.way_out:
            show.console.print(f"  {error.way_out}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        show.console.print("Interrupted. The stack keeps running: ratchet down stops it.")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if succeeded(result) else 2)


def succeeded(result: Result) -> bool:
    """A good candidate has to be promoted; one taught nonsense has to be stopped."""
    return result.promoted != result.shuffled


def run(options: Options, show: Show, down: bool = False) -> Result:
    """Read the data, bring up what is not up, play, and with `down` stop what was started."""
    rows, parts = read_parts(options)
    with show.step("set-up", "Broker, database, Unleash, vLLM and the ten services") as bar:
        settings = bring_up(lambda message: bar.update(message=message))
    try:
        return asyncio.run(play(options, settings, rows, parts, show))
    finally:
        if down:
            take_down(lambda message: show.say(f"[dim]{message}[/]"))
