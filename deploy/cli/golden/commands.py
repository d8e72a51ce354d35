"""`ratchet golden`: a task's golden set, which every candidate is asked and nobody trains on, changed on purpose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.output import say, show_blocks, user_name, warn
from schemas.base import utc_now
from schemas.golden import GoldenPart, GoldenRow
from schemas.tasks import TaskSpec
from services.scheduler.settings import SchedulerSettings
from shared.errors import ConfigurationError
from shared.report.blocks import Table
from shared.storage.artifacts import ArtifactStore

if TYPE_CHECKING:
    from services.scheduler.golden.changes import Author

HELP = """The golden set of a task: what every candidate is asked, and what nobody trains on. It grows on purpose only.

Part [bold]kept[/bold]: the base model, asked twice, gets it right; fine-tuning must not forget it. Part
[bold]sample[/bold]: chosen without a look at any model's answer, with labels that two people agree on. A
[bold]must-pass[/bold] row stops a candidate by itself.

The rows are in <task>.golden.jsonl beside the task's file in the scheduler's folder, with all changes in
<task>.golden.history.jsonl; run these commands on the scheduler's machine.
"""
app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)
_SHOWN_CHARACTERS = 80

Task = Annotated[str, typer.Argument(help="The task's name.", show_default=False)]
RowId = Annotated[str, typer.Argument(metavar="ROW", help="The row's id, as `list` shows it.", show_default=False)]
Part = Annotated[GoldenPart | None, typer.Option("--part", help="The part; default: sample, or the file's.")]
Reason = Annotated[str, typer.Option("--reason", help="Why: it stays in the row's history.", show_default=False)]
By = Annotated[str | None, typer.Option("--by", help="Who; default: the user of this machine.", show_default=False)]


@app.command("list")
def list_rows(
    task: Task,
    part: Annotated[GoldenPart | None, typer.Option("--part", help="Only this part.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: whole rows, with their history.")] = False,
) -> None:
    """Show the rows of a task's golden set, and who added them, when and why.

    [bold]Example[/bold]

      ratchet golden list support-desk --part kept
    """
    from services.scheduler.golden.changes import find_task, read_history

    file = find_task(_settings().tasks_folder, task)
    rows = [row for row in file.golden if part in (None, row.part)]
    history = read_history(file)
    if as_json:
        changes = [change.model_dump(mode="json") for change in history]
        found = [row.model_dump(mode="json", exclude_defaults=True) for row in rows]
        typer.echo(json.dumps({"task": task, "rows": found, "history": changes}, ensure_ascii=False, indent=2))
        return
    added = {change.row_id: change for change in history if change.action == "added"}
    cells = []
    for row in rows:
        change = added.get(row.row_id)
        by = f"{change.at:%Y-%m-%d} {change.by}" if change else "with the task's file"
        cells.append((
            row.row_id, row.part, "yes" if row.must_pass else "", _short(row.prompt[-1].text), _short(row.answer), by,
            change.reason if change else "",
        ))  # fmt: skip
    columns = ("row", "part", "must pass", "question", "answer", "added", "reason")
    show_blocks(Table(columns, cells, whole=columns[:1]))
    must_pass = sum(row.must_pass for row in rows)
    say(f"{_count(rows)}, {must_pass} of them must-pass; set {file.spec.golden_set and file.spec.golden_set.set_id}")


@app.command()
def add(
    task: Task,
    reason: Reason,
    text: Annotated[str | None, typer.Option("--text", help="A question; --label is its right answer.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="The right answer to --text or --prediction.")] = None,
    prediction: Annotated[str | None, typer.Option("--prediction", help="Or the id of a prediction.")] = None,
    correction: Annotated[str | None, typer.Option("--correction", help="Or the id of a correction.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Or a file of rows, such as `suggest` prints.")] = None,
    part: Part = None,
    must_pass: Annotated[bool, typer.Option("--must-pass", help="A candidate that gets it wrong is stopped.")] = False,
    by: By = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask about what looks like personal data.")] = False,
) -> None:
    """Add rows: a question, a prediction with its right answer, a reviewer's correction, or a file of rows.

    The next build leaves out what is trained on that is one of them, or nearly; this says how much that is.

    [bold]Examples[/bold]

      ratchet golden add support-desk --text "I want my money back" --label refund --must-pass --reason "asked daily"

      ratchet golden add support-desk --prediction 0199… --label refund --reason "a customer was lost over it"

      ratchet golden add support-desk --file rows.jsonl --part kept --reason "suggested, looked through by Ana"
    """
    from services.scheduler.golden.changes import add_rows, find_task

    given = [name for name, value in {"--text": text, "--prediction": prediction, "--correction": correction,
                                      "--file": file}.items() if value is not None]  # fmt: skip
    if len(given) != 1:
        raise typer.BadParameter("give one of --text, --prediction, --correction and --file")
    if (label is not None) != (given[0] in ("--text", "--prediction")):
        raise typer.BadParameter("--text and --prediction need --label, and only they have one")
    author, settings = _author(by, reason), _settings()
    spec = find_task(settings.tasks_folder, task).spec
    rows = _rows(settings, spec, text or prediction or correction or "", given[0], label or "", file, part)
    if must_pass:
        rows = [row.model_copy(update={"must_pass": True}) for row in rows]
    if _seem_personal(settings, spec, rows) and not yes:
        typer.confirm("Nothing redacts a golden row. Add it as it is?", abort=True, err=True)
    add_rows(settings.tasks_folder, task, rows, author)
    say(f"{_count(rows)} added to {task}'s golden set: {', '.join(row.row_id for row in rows[:5])}")
    _report_training_rows(settings, spec, rows)


@app.command()
def mark(
    task: Task,
    row: RowId,
    reason: Reason,
    must_pass: Annotated[bool, typer.Option("--must-pass/--no-must-pass", help="Whether it must pass.")] = True,
    by: By = None,
) -> None:
    """Mark a row as must-pass, a person's word that no candidate may get it wrong; or take the mark back.

    [bold]Examples[/bold]

      ratchet golden mark support-desk g-5f0c52d1a9be --reason "asked daily"

      ratchet golden mark support-desk g-5f0c52d1a9be --no-must-pass --reason "the offer has ended"
    """
    from services.scheduler.golden.changes import mark_row

    mark_row(_settings().tasks_folder, task, row, must_pass, _author(by, reason))
    say(f"{row} {'must pass' if must_pass else 'need not pass'} from now on")


@app.command()
def remove(
    task: Task,
    rows: Annotated[list[str], typer.Argument(metavar="ROW…", help="Ids, as `list` shows them.", show_default=False)],
    reason: Reason,
    by: By = None,
) -> None:
    """Remove rows from a golden set. Their history stays; older golden sets stay in the artifact store.

    [bold]Example[/bold]

      ratchet golden remove support-desk g-5f0c52d1a9be --reason "we no longer sell it"
    """
    from services.scheduler.golden.changes import remove_rows

    remove_rows(_settings().tasks_folder, task, rows, _author(by, reason))
    say(f"{_count(set(rows))} removed from {task}'s golden set")


@app.command()
def suggest(
    task: Task,
    part: Annotated[GoldenPart, typer.Option("--part", help="The part that the rows are for.", show_default=False)],
    count: Annotated[int, typer.Argument(min=1, max=10_000, help="Rows wanted, at most.")] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Another one draws other rows.")] = 20,
) -> None:
    """Print rows that a person may add, as JSON lines; nothing is changed.

    [bold]sample[/bold] draws at random, class by class, from the audit of all traffic: questions on whose label two
    reviewers agree, whatever any model answered. [bold]kept[/bold] draws from all reviewed questions and asks the base
    model twice: those that it gets right both times. Neither has what was ever trained on, or nearly.

    [bold]Example[/bold]

      ratchet golden suggest support-desk --part kept 50 > rows.jsonl

      ratchet golden add support-desk --file rows.jsonl --reason "looked through by Ana"
    """
    from services.scheduler.golden.changes import find_task
    from services.scheduler.golden.file import golden_lines

    settings = _settings()
    task_file = find_task(settings.tasks_folder, task)
    rows = asyncio.run(_suggest(settings, task_file.spec, task_file.golden, part, count, seed))
    typer.echo(golden_lines(rows).decode(), nl=False)
    if len(rows) < count:
        warn(f"{_count(rows)} instead of {count}: {_WHY_FEW[part]}")


_WHY_FEW = {
    GoldenPart.SAMPLE: "only audited questions on whose label two reviewers agree, and that no version trained on, may "
    "be in the sample. Answer more audits in the console; failures.overlap_share says how many two people get.",
    GoldenPart.KEPT: "the base model gets no more of the reviewed questions right twice that no version trained on.",
}


async def _suggest(
    settings: SchedulerSettings, spec: TaskSpec, golden: Sequence[GoldenRow], part: GoldenPart, count: int, seed: int
) -> list[GoldenRow]:
    from deploy.cli.golden.corrections import read_corrections
    from deploy.cli.golden.suggestions import ask_base, drawn, kept_candidates, new_rows, right_twice, sample_candidates
    from deploy.cli.golden.training import never_trained_on
    from shared.model.inference import InferenceClient

    corrections = await read_corrections(settings, spec.name)
    candidates = (sample_candidates if part is GoldenPart.SAMPLE else kept_candidates)(corrections, spec)
    unused = never_trained_on(_store(settings), spec, new_rows(candidates, golden, spec))
    ordered = drawn(unused, seed)
    if part is GoldenPart.SAMPLE:
        return ordered[:count]
    client = InferenceClient(settings.vllm_urls, key=settings.server_key())
    try:
        return await right_twice(ordered, count, lambda rows: ask_base(client, rows, spec))
    finally:
        await client.close()


def _rows(
    settings: SchedulerSettings, spec: TaskSpec, value: str, source: str, label: str, file: Path | None,
    part: GoldenPart | None,
) -> list[GoldenRow]:  # fmt: skip
    from deploy.cli.golden.corrections import read_corrections
    from deploy.cli.golden.sources import row_of_correction, row_of_prediction, row_of_text
    from services.scheduler.golden.file import read_golden_file

    if file is not None:
        rows = read_golden_file(file, spec)
        return [row.model_copy(update={"part": part or row.part}) for row in rows]
    part = part or GoldenPart.SAMPLE
    if source == "--text":
        return [row_of_text(spec, value, label, part)]
    if source == "--prediction":
        return [row_of_prediction(spec, settings.lake_uri, value, label, part)]
    for found in asyncio.run(read_corrections(settings, spec.name)):
        if found.correction_id == value:
            return [row_of_correction(spec, found, part)]
    raise ConfigurationError(f"there is no correction {value} of {spec.name}", "Its user may have been forgotten.")


def _seem_personal(settings: SchedulerSettings, spec: TaskSpec, rows: Sequence[GoldenRow]) -> bool:
    """Say what looks like personal data in what a person wrote; returns True if anything does."""
    from deploy.cli.golden.sources import personal_data_in
    from shared.identity import load_or_create_key
    from shared.privacy.redaction import Redactor

    if not spec.redaction.enabled or all(row.prediction_id is not None for row in rows):
        return False
    redactor = Redactor(load_or_create_key(settings.secrets_folder, "surrogates"))
    found = personal_data_in(spec, rows, redactor.find)
    for row_id, kinds in found.items():
        text = next(row.prompt[-1].text for row in rows if row.row_id == row_id)
        warn(f"This seems to have personal data ({kinds}): {_short(text)}", "yellow")
    return bool(found)


def _report_training_rows(settings: SchedulerSettings, spec: TaskSpec, rows: Sequence[GoldenRow]) -> None:
    from deploy.cli.golden.training import count_in_newest

    found = count_in_newest(_store(settings), spec, rows)
    if found is None or not (found.train or found.eval):
        say("No row of the task's newest dataset is one of them, or nearly.")
        return
    warn(
        f"{found.dataset_id} has {found.train} training rows and {found.eval} evaluation rows that are one of them, or "
        "nearly: the next build leaves them out. Adapters that were trained on them have seen the answers.",
        "yellow",
    )


def _settings() -> SchedulerSettings:
    return SchedulerSettings.load()


def _store(settings: SchedulerSettings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts_uri, settings.home / "cache")


def _author(by: str | None, reason: str) -> Author:
    from services.scheduler.golden.changes import Author

    if not reason.strip():
        raise typer.BadParameter("--reason is empty: say why, for whoever reads the history")
    return Author(by or user_name(), reason.strip(), utc_now())


def _count(rows: Collection[object]) -> str:
    return f"{len(rows)} row{'s' if len(rows) != 1 else ''}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"
