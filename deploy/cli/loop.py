"""`ratchet loop`: the whole demonstration in one command, with an exit code that scripts can rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.output import warn


def loop(
    data: Annotated[Path | None, typer.Option(help="Your own CSV file instead of the shipped support desk.")] = None,
    text: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    label: Annotated[str, typer.Option(help="The column of labels.")] = "label",
    labels: Annotated[int, typer.Option(min=2, max=100, help="How many of the most frequent labels to use.")] = 10,
    corrections: Annotated[
        int | None, typer.Option(min=12, help="Most corrections per label; default: 40. More make training longer.")
    ] = None,
    task_name: Annotated[str | None, typer.Option(help="Name of the task; default: from the file.")] = None,
    report: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")] = Path("report"),
    shuffle_labels: Annotated[
        bool, typer.Option("--shuffle-labels", help="Train on shuffled labels: the candidate must be stopped.")
    ] = False,
    prove_rollback: Annotated[
        bool, typer.Option("--prove-rollback", help="Afterwards switch rollback and primary by hand, timed.")
    ] = False,
    down: Annotated[bool, typer.Option("--down/--keep-running", help="Stop the stack afterwards.")] = False,
    wrong_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of reviewers' answers that are wrong on purpose.")
    ] = 0.05,
    disagree_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of second answers that disagree on purpose.")
    ] = 0.25,
    seed: Annotated[int, typer.Option(help="Seed of the data split and of the reviewers' mistakes.")] = 20,
) -> None:
    """Run one full cycle on real components: from a production request to a promoted adapter.

    Exits with 0 when a good candidate is promoted, or one trained on shuffled labels is stopped; otherwise with 2.
    """
    from deploy.demo.settings import DataOptions, LoopOptions, PlannedMistakes
    from deploy.demo.story import run
    from deploy.demo.terminal import Terminal

    options = LoopOptions(
        data=DataOptions(data, text, label, labels, corrections),
        mistakes=PlannedMistakes(wrong_share, disagree_share, seed),
        task_name=task_name, report=report, shuffle_labels=shuffle_labels, prove_rollback=prove_rollback,
    )  # fmt: skip
    try:
        result = run(options, Terminal(), stop_stack=down)
    except KeyboardInterrupt:
        warn("Interrupted. The stack keeps running: ratchet down stops it.")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if result.as_expected else 2)
