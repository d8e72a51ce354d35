"""The commands of `ratchet evaluation`."""

from __future__ import annotations

import json
import shutil
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.dataset.versions import open_store
from deploy.cli.evaluation.reports import evaluations_of, find_report, page_of, rows_named
from deploy.cli.output import say, show_blocks
from schemas.evaluation import EVALUATION_PAGE, EVALUATIONS, EvaluationReport
from shared.report.blocks import Block, Cell, Link, Share, Table, Tag
from shared.report.evaluation import VERDICTS, evaluation_blocks
from shared.storage.artifacts import ArtifactStore

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""What each candidate was judged by: gates, classes, slices, confidence, cheap rivals, speed and cost.

    Where the artifacts are is a setting (RATCHET_ARTIFACTS).""",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_QUOTED = 100


@app.command("list")
def list_evaluations(
    task: Annotated[str, typer.Argument(help="The task.", show_default=False)], as_json: AsJson = False
) -> None:
    """List a task's evaluations, oldest first. Times are in UTC.

    [bold]Example[/bold]

      ratchet evaluation list support-desk
    """
    found = evaluations_of(open_store(), task)
    if as_json:
        fields = {"evaluation", "adapter", "cycle_id", "created_at", "verdict", "headline"}
        typer.echo(json.dumps([report.model_dump(mode="json", include=fields) for report in found], indent=2))
        return
    rows: list[tuple[Cell, ...]] = [
        (
            report.evaluation,
            f"{report.created_at:%Y-%m-%d %H:%M}",
            *(Share(arm.score.accuracy.value) for arm in (report.candidate, report.production)),
            Tag(report.verdict, VERDICTS[report.verdict]),
        )
        for report in found
    ]
    columns = ("evaluation", "judged", "candidate", "production", "verdict")
    show_blocks(Table(columns, rows, whole=columns[:2]))


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="TASK|ADAPTER|ID", help="The newest of a task or an adapter, or one evaluation by its id."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Copy the page with plots to this file.", show_default=False)
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page with plots in the browser.")] = False,
    lost: Annotated[int, typer.Option("--lost", min=0, help="How many of the lost rows to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show what a candidate was judged by. Exits with 1 where a gate stopped it.

    Lost rows, which production answers right and the candidate does not, are read from the data set: a report quotes
    nobody.

    [bold]Examples[/bold]

      ratchet evaluation show support-desk --open

      ratchet evaluation show support-desk-3f2a9c01b2d4 --output evaluation.html
    """
    store = open_store()
    report = find_report(store, name)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        page = Link("The report as a page", f"{store.address(EVALUATIONS, report.evaluation)}/{EVALUATION_PAGE}")
        show_blocks(*evaluation_blocks(report), *_lost_blocks(store, report, lost), page)
    if output is not None:
        shutil.copyfile(page_of(store, report), output)
    if open_page and not webbrowser.open(page_of(store, report).absolute().as_uri()):
        say("No browser was found on this machine: copy the page with --output.", "yellow")
    raise typer.Exit(report.verdict == "failed")


def _lost_blocks(store: ArtifactStore, report: EvaluationReport, count: int) -> list[Block]:
    """The first lost rows, read from the data set."""
    names = report.lost[:count]
    rows = rows_named(store, report, names) if names else {}
    quoted = [
        (name, rows[name].prompt[-1].text[:_QUOTED], rows[name].answer[:_QUOTED]) if name in rows else (name, "", "")
        for name in names
    ]
    columns = (f"lost, of {len(report.lost):,}", "asked", "right is")
    return [Table(columns, quoted, whole=columns[:1])] if names else []
