"""The commands of `ratchet evaluation`."""

from __future__ import annotations

import json
import shutil
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from deploy.cli.dataset.versions import open_store
from deploy.cli.evaluation.reports import evaluations_of, find_report, page_of, rows_named
from deploy.cli.output import build_table, print_table, say
from deploy.demo.report.approaches import COLUMNS, approach_rows, basis
from schemas.base import CheckResult
from schemas.evaluation import EVALUATIONS, EvaluationReport
from shared.grading import text_table
from shared.storage.artifacts import ArtifactStore

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""What each candidate was judged by: gates, classes, slices, confidence, cheap rivals, speed and cost.

    Where the artifacts are is a setting (RATCHET_ARTIFACTS).""",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_STYLES = {CheckResult.PASSED: "green", CheckResult.FAILED: "red", CheckResult.UNKNOWN: "yellow"}
_VERDICTS = {"passed": "green", "failed": "red", "inconclusive": "yellow"}
_MAX_PARTS = 10
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
    table = build_table("evaluation", "judged", "candidate", "production", "verdict", whole=("evaluation", "judged"))
    for report in found:
        scores = [f"{arm.score.accuracy.value:.1%}" for arm in (report.candidate, report.production)]
        verdict = Text(report.verdict, style=_VERDICTS[report.verdict])
        table.add_row(report.evaluation, f"{report.created_at:%Y-%m-%d %H:%M}", *scores, verdict)
    print_table(table)


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
        _show(report)
        _show_lost(store, report, lost)
        say(f"The report as a page: {store.address(EVALUATIONS, report.evaluation)}/evaluation.html")
    if output is not None:
        shutil.copyfile(page_of(store, report), output)
    if open_page and not webbrowser.open(page_of(store, report).absolute().as_uri()):
        say("No browser was found on this machine: copy the page with --output.", "yellow")
    raise typer.Exit(report.verdict == "failed")


def _show(report: EvaluationReport) -> None:
    say(report.headline, _VERDICTS[report.verdict])
    gates = build_table("gate", "", "value", "limit", "why")
    for gate in report.gates:
        value = "–" if gate.measured is None else f"{gate.measured:,.4g}"
        gates.add_row(gate.name, Text(gate.result, style=_STYLES[gate.result]), value, gate.required, gate.detail)
    print_table(gates)
    approaches = build_table(*COLUMNS)
    for row in approach_rows(report.approaches):
        approaches.add_row(*row)
    print_table(approaches)
    say(basis(report.approaches))
    _show_texts(report)
    if report.parts:
        parts = build_table("part", "rows", "candidate", "production", "p, adjusted")
        for part in sorted(report.parts, key=lambda part: (not part.worse, part.gain.value))[:_MAX_PARTS]:
            shares = (f"{part.candidate.value:.1%}", f"{part.production.value:.1%}")
            p = "too few rows" if part.p_worse is None else f"{part.p_worse:.3g}"
            style = "red" if part.worse else None
            parts.add_row(f"{part.kind.replace('_', ' ')} {part.name}", f"{part.rows:,}", *shares, p, style=style)
        print_table(parts)
        if len(report.parts) > _MAX_PARTS:
            say(f"Where the candidate loses most; the page has all {len(report.parts)} parts.")
    if (found := report.low_confidence) is not None:
        threshold = found.threshold if found.calibrated is None else found.calibrated
        say(f"Low confidence: {threshold:.2f} or less, {found.flagged:.1%} of answers, {found.recall:.0%} of errors.")
    for arm, speed in (("candidate", report.candidate.speed), ("production", report.production.speed)):
        tokens = "" if speed.tokens_per_second is None else f", {speed.tokens_per_second:,.1f} answer tokens/s"
        say(f"Speed of {arm}: p50 {speed.latency_ms_p50:,.0f} ms, p95 {speed.latency_ms_p95:,.0f} ms{tokens}")


def _show_texts(report: EvaluationReport) -> None:
    if report.texts:
        texts = build_table(*text_table.COLUMNS)
        for cells in text_table.text_rows(report.texts):
            texts.add_row(*cells)
        print_table(texts)
    if report.judge is not None:
        say(text_table.judge_finding(report.judge))
        certification = build_table("the judge", "", show_header=False)
        for cells in text_table.judge_rows(report.judge):
            certification.add_row(*map(Text, cells))
        print_table(certification)


def _show_lost(store: ArtifactStore, report: EvaluationReport, count: int) -> None:
    if not report.lost or not count:
        return
    rows = rows_named(store, report, report.lost[:count])
    columns = (f"lost, of {len(report.lost):,}", "asked", "right is")
    table = build_table(*columns, whole=columns[:1])
    for name in report.lost[:count]:
        row = rows.get(name)
        asked = ("", "") if row is None else (row.prompt[-1].text[:_QUOTED], row.answer[:_QUOTED])
        table.add_row(name, *map(Text, asked))
    print_table(table)
