"""`ratchet loop`: the whole demonstration in one command, with an exit code that scripts can rely on."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.output import warn
from deploy.demo.settings import DataOptions, Fault, LoopOptions, PlannedMistakes
from schemas.base import TASK_NAME
from schemas.tasks import TaskKind


class LoopKind(StrEnum):
    """The kinds of tasks that the loop can play."""

    CLASSIFICATION = "classification"
    EXTRACTION = "extraction"
    TOOLS = "tools"
    GENERATION = "generation"


def loop(
    context: typer.Context,
    kind: Annotated[
        LoopKind,
        typer.Option(
            help="classification: labels, from a CSV file. extraction: objects, tools: calls of functions, generation: "
            "texts, from JSON lines."
        ),
    ] = LoopKind.CLASSIFICATION,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your own file instead of the shipped one: a CSV file, or JSON lines of "
            '{"text": …, "answer": {…}} with the JSON Schema beside it (NAME.schema.json), or of '
            '{"text": …, "calls": [{"name": …, "arguments": {…}}]} with a list of the functions (NAME.tools.json). '
            "A generation's answer is a text."
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            help="File with an extraction's JSON Schema, or with the list of functions, if not beside the data."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="The system prompt of a generation; default: to summarise in one sentence.")
    ] = None,
    text: Annotated[str, typer.Option(help="The CSV file's column of texts.")] = "text",
    label: Annotated[str, typer.Option(help="The CSV file's column of labels.")] = "label",
    labels: Annotated[
        int, typer.Option(min=2, max=100, help="How many of the CSV file's most frequent labels to use.")
    ] = 10,
    corrections: Annotated[
        int | None,
        typer.Option(
            min=12,
            help="Questions put to people per label, of other kinds in all; at least 80 in all. Default: 40 a label, "
            "fewer for more than ten. Training takes about a second for each: 40 labels with 30 each took half an hour "
            "on two cores.",
        ),
    ] = None,
    task_name: Annotated[str | None, typer.Option(help="Name of the task; default: from the file.")] = None,
    report: Annotated[Path, typer.Option(help="Folder for report.html and report.json, made if missing.")] = Path(
        "report"
    ),
    noise: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="A fault: so large a share of reviewers' labels is wrong, in every question. At 0.3 the data set must "
            "be stopped.",
        ),
    ] = None,
    shuffle_labels: Annotated[
        bool, typer.Option("--shuffle-labels", help="A fault: reviewers give each text another text's label.")
    ] = False,
    one_class: Annotated[
        bool, typer.Option("--one-class", help="A fault: reviewers give every text the same label.")
    ] = False,
    down: Annotated[bool, typer.Option("--down/--keep-running", help="Stop the stack afterwards.")] = False,
    wrong_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of reviewers' answers that are wrong on purpose, 0 to 1.")
    ] = 0.03,
    disagree_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of second answers that disagree on purpose, 0 to 1.")
    ] = 0.03,
    seed: Annotated[int, typer.Option(help="Seed of the data split and of the reviewers' mistakes.")] = 20,
) -> None:
    """Run one full cycle on real components: from a production request to a promoted adapter.

    Exits with 0 when a good candidate is promoted; with --noise, --shuffle-labels or --one-class, when the data set is
    stopped by a gate that names the fault, before anything is trained. Otherwise with 2.

    [bold]Examples[/bold]

      ratchet loop                        the shipped support desk: ten minutes

      ratchet loop --data questions.csv --text text --label category --labels 10

      ratchet loop --kind extraction --data orders.jsonl

      ratchet loop --noise 0.3 --down     a fault: the data set must be stopped
    """
    from deploy.demo.story import run
    from deploy.demo.terminal import Terminal

    fault = _chosen_fault(noise, shuffle_labels, one_class)
    if task_name is not None and not re.fullmatch(TASK_NAME, task_name):
        raise typer.BadParameter(f"--task-name {task_name!r}: lower case, digits and dashes, 63 at most, no dash first")
    if kind is not LoopKind.CLASSIFICATION and fault is not None:
        raise typer.BadParameter(f"the faults are of labels: give them without --kind {kind.value}")
    if kind is not LoopKind.GENERATION and prompt is not None:
        raise typer.BadParameter("--prompt is of a generation: give --kind generation, too")
    if kind not in (LoopKind.EXTRACTION, LoopKind.TOOLS) and schema is not None:
        raise typer.BadParameter("--schema is of an extraction or of tools: give --kind, too")
    if schema is not None and data is None:
        raise typer.BadParameter("--schema is of your own data: give --data, too")
    of_csv = [f"--{name}" for name in ("text", "label", "labels") if _is_given(context, name)]
    if of_csv and (data is None or kind is not LoopKind.CLASSIFICATION):
        raise typer.BadParameter(f"{', '.join(of_csv)}: of your own CSV file; give --data, and no other --kind")
    options = LoopOptions(
        data=DataOptions(
            data, text, label, labels, corrections, kind=TaskKind(kind), schema=schema, prompt=prompt,
        ),
        mistakes=PlannedMistakes.of(fault, wrong_share if noise is None else noise, disagree_share, seed),
        task_name=task_name, report=report, fault=fault,
    )  # fmt: skip
    try:
        result = run(options, Terminal(), stop_stack=down)
    except KeyboardInterrupt:
        warn("Interrupted. The stack keeps running: ratchet down stops it.")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if result.as_expected else 2)


def _is_given(context: typer.Context, name: str) -> bool:
    """Return True for an option that stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _chosen_fault(noise: float | None, shuffle_labels: bool, one_class: bool) -> Fault | None:
    """Return the fault that was asked for. Raises BadParameter for two: it would be unclear what stopped them."""
    asked = {Fault.NOISE: noise is not None, Fault.SHUFFLED_LABELS: shuffle_labels, Fault.ONE_CLASS: one_class}
    faults = [fault for fault, is_asked in asked.items() if is_asked]
    if len(faults) > 1:
        raise typer.BadParameter("give one of --noise, --shuffle-labels and --one-class")
    return faults[0] if faults else None
