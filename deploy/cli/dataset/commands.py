"""The commands of `ratchet dataset`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cli.dataset.differing import DifferingRow, compare_versions
from deploy.cli.dataset.export import export as export_version
from deploy.cli.dataset.versions import open_store, read_manifest, read_report, versions_of
from deploy.cli.output import say, show_blocks
from schemas.quality import QualityReport
from shared.report.blocks import Link, Table, Tag
from shared.report.dataset import inspection_blocks

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""The versions of a task's dataset: list, inspect, compare and copy them.

    A version never changes: its id is a hash of its rows. Where the artifacts are is a setting (RATCHET_ARTIFACTS).""",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Form(StrEnum):
    JSONL = "jsonl"
    PARQUET = "parquet"
    HF = "hf"


@app.command("list")
def list_versions(
    task: Annotated[str, typer.Argument(help="The task.", show_default=False)], as_json: AsJson = False
) -> None:
    """List a task's versions, oldest first, and the builds that a gate stopped. Times are in UTC.

    [bold]Example[/bold]

      ratchet dataset list support-desk
    """
    found = versions_of(open_store(), task)
    if as_json:
        typer.echo(json.dumps([{"id": v.name, **_summary(v.report)} for v in found], indent=2))
        return
    columns = ("version", "built", "cycle", "training", "held out", "left out", "checks")
    rows = [
        (
            version.name if report.passed else Tag("stopped", "open"),
            f"{report.created_at:%Y-%m-%d %H:%M}",
            report.cycle_id,
            report.train_examples,
            report.eval_examples,
            sum(count.count for count in report.left_out),
            version.checks(),
        )
        for version in found
        for report in (version.report,)
    ]
    show_blocks(Table(columns, rows, whole=columns[:3]))


@app.command()
def show(
    version: Annotated[
        str, typer.Argument(metavar="ID", help="A version, or the cycle of a build that a gate stopped.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what was checked before anyone trained on a version, and where its rows ended.

    Exits with 1 where a gate stopped the build. `quality.html` in its folder is the same with plots and examples.

    [bold]Examples[/bold]

      ratchet dataset show support-desk-9b1c2d3e4f50

      ratchet dataset show support-desk-20261123-030000          a build that was stopped, by its cycle
    """
    address, report = read_report(open_store(), version)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        show_blocks(*inspection_blocks(report), Link("The report as a page", f"{address}/quality.html"))
    raise typer.Exit(not report.passed)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="The version that is compared with.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The version that came of it.")],
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many rows of each kind to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare two versions: rows that were added, removed, relabelled, moved between the parts, or weigh otherwise.

    A row is known by its prediction. Exits with 0 whether they differ or not.

    [bold]Example[/bold]

      ratchet dataset diff support-desk-90d2b1c4 support-desk-9b1c2d3e4f50
    """
    found = compare_versions(open_store(), before, after, limit)
    if as_json:
        typer.echo(json.dumps(found.body(), indent=2, ensure_ascii=False))
        return
    cells = [
        (*((count, kind) if number == 0 else ("", "")), *_cells(row))
        for kind, (count, rows) in found.kinds.items()
        for number, row in enumerate(rows or [None])
    ]
    columns = ("rows", "", "prediction", "before", "after", "asked")
    show_blocks(Table(columns, cells, whole=("prediction",)))


@app.command()
def export(
    version: Annotated[str, typer.Argument(metavar="ID", help="The version.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder that does not exist yet, or is empty.")],
    form: Annotated[Form, typer.Option("--format", "-f", help="What the files are: see above.")] = Form.HF,
) -> None:
    """Copy a version into a folder, for other tools: a file for `train` and one for `eval`.

    jsonl: one row a line, its messages as OpenAI's chat API has them. parquet: the same rows as Parquet. hf: Parquet
    with a card, so that `datasets.load_dataset("PATH")` has the splits and the columns.

    A copy is beyond `ratchet forget`: rows have `user_hash` and `author_hashes`, so that you find whose they are.

    [bold]Examples[/bold]

      ratchet dataset export support-desk-9b1c2d3e4f50 --format jsonl --output /tmp/desk

      python -c 'import datasets; print(datasets.load_dataset("/tmp/desk"))'           after --format hf
    """
    store = open_store()
    read_manifest(store, version)
    counts = export_version(store, version, form.value, output)
    say(f"{counts['train']:,} training and {counts['eval']:,} held-out rows in {output}")
    say("This copy is yours: `ratchet forget` does not reach it.", "yellow")


def _summary(report: QualityReport) -> dict[str, Any]:
    fields = {"dataset_id", "cycle_id", "parent", "created_at", "passed", "train_examples", "eval_examples", "left_out"}
    return report.model_dump(mode="json", include=fields)


def _cells(row: DifferingRow | None) -> tuple[str, str, str, str]:
    return ("", "", "", "") if row is None else (row.prediction, row.before, row.after, row.asked)
