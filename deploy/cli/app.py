"""The `ratchet` command. Each group of commands has a file of its own here; this one assembles them."""

from __future__ import annotations

import typer

from deploy.cli import (
    contract,
    dataset,
    dead_letters,
    evaluation,
    forget,
    keys,
    lake,
    loop,
    rollout,
    stack,
    tasks,
    topics,
)
from deploy.cli.advice.commands import advise
from deploy.cli.golden import commands as golden
from deploy.cli.imports.commands import import_labels
from deploy.cli.output import ErrorPrintingGroup
from deploy.cli.shadow import commands as shadow
from deploy.cli.training.commands import train

app = typer.Typer(
    cls=ErrorPrintingGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Ratchet makes an LLM application better every week and never worse.

    [bold]ratchet up[/bold] starts everything on this machine; [bold]ratchet status[/bold] shows it;
    [bold]ratchet down[/bold] stops it. State lives in RATCHET_HOME (default: .ratchet here).""",
)
for command in (
    loop.loop,
    stack.up,
    stack.down,
    stack.status,
    stack.install,
    stack.logs,
    tasks.cycle,
    train,
    advise,
    forget.forget,
):
    app.command()(command)
app.command("import")(import_labels)
app.add_typer(tasks.app, name="tasks")
app.add_typer(rollout.app, name="rollout")
app.add_typer(shadow.app, name="shadow")
app.add_typer(dataset.app, name="dataset")
app.add_typer(evaluation.app, name="evaluation")
app.add_typer(golden.app, name="golden")
app.add_typer(keys.app, name="keys")
app.add_typer(topics.app, name="topics")
app.add_typer(dead_letters.app, name="dlq")
app.add_typer(lake.app, name="lake")
app.add_typer(contract.app, name="contract")

if __name__ == "__main__":
    app()
