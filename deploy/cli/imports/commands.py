"""The command `ratchet import`."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.cli.output import say, show_blocks, stderr, warn
from shared.errors import ConfigurationError
from shared.report.blocks import Table
from shared.settings import Settings

if TYPE_CHECKING:
    from deploy.cli.imports.files import Line
    from deploy.cli.imports.rows import Columns, ImportedRow
    from schemas.tasks import TaskChanged

_SHOWN_ERRORS = 10
_SENT_AT_ONCE = 200
_REDACTIONS_REMEMBERED = 1_000


def _column(option: str, help_text: str) -> Any:
    return typer.Option(option, metavar="COLUMN", help=help_text)


@dataclass
class Plan:
    """What is in a file. `rows`: those to publish; `errors`: by line; `stored`: rows of it that were imported before.

    `labels`: how often each is given, of tasks that have labels.
    """

    rows: list[ImportedRow] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    total: int = 0
    repeated: int = 0
    stored: int = 0


def import_labels(
    task: Annotated[str, typer.Argument(help="The task's name.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="CSV, JSON lines or Parquet.", show_default=False)],
    text: Annotated[str | None, _column("--text", "Of the questions; default: text.")] = None,
    label: Annotated[str | None, _column("--label", "Of the right answers; default: label.")] = None,
    author: Annotated[str | None, _column("--author", "Of who labelled; default: author, else the file.")] = None,
    time: Annotated[str | None, _column("--time", "Of when it was asked; default: time, else the file's.")] = None,
    user: Annotated[str | None, _column("--user", "Of who asked, for erasure; default: user.")] = None,
    session: Annotated[str | None, _column("--session", "Of the conversation's id; default: session.")] = None,
    weight: Annotated[str | None, _column("--weight", "Of how much a row counts; default: weight, else 1.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Import nothing: check every line.")] = False,
    skip_errors: Annotated[bool, typer.Option("--skip-errors", help="Import the lines that have none.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Import labelled data: the next cycle trains on it and holds a part of it out, without one review.

    A line has a `text` and its `label`, or `messages` as in OpenAI's chat API, whose last one, the assistant's, is the
    label. Lists of labels, objects and tool calls are JSON. Personal data is replaced, as in requests. A row counts as
    a reviewer's word, not as a sample of production.

    A line with an error stops the import before anything is published. To import a file again, or one that was
    interrupted, adds what is missing: a row is known by its text, its label and, if there is a column `id`, by that.

    [bold]Examples[/bold]

      ratchet import support-desk tickets.csv --dry-run

      ratchet import support-desk tickets.csv --text body --label queue --user customer

      ratchet import replies chats.jsonl --yes
    """
    options = {"text": text, "label": label, "author": author, "time": time, "user": user, "session": session}
    given = {name: column for name, column in {**options, "weight": weight}.items() if column is not None}
    settings = Settings.load()
    change, stored = asyncio.run(_published(settings, task))
    plan = _read(settings, change, file, given, stored)
    report = _report(change, file, plan)
    if not as_json:
        _show(plan, file)
    is_refused = bool(plan.errors) and not skip_errors
    if not (dry_run or is_refused) and plan.rows:
        if not yes:
            typer.confirm(_warning(plan, change), abort=True, err=True)
        report |= asyncio.run(_publish(settings, change, plan))
        if not as_json:
            say(f"{report['published']:,} rows imported into {task}; {report['redactions']:,} pieces redacted", "green")
            say(f"They are in its next version: ratchet cycle {task}")
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    if is_refused:
        reason = f"{len(plan.errors):,} of {plan.total:,} lines have an error, so nothing is imported"
        raise ConfigurationError(reason, "Mend them, or leave them out: --skip-errors")
    if report["refused"]:
        raise ConfigurationError(f"{len(report['refused'])} rows were not imported: they cannot be redacted")


async def _published(settings: Settings, name: str) -> tuple[TaskChanged, set[str]]:
    """The task as it is applied, and the ids of what was imported into it, of people who are forgotten, too.

    Raises ConfigurationError for a task that is not applied, DependencyUnavailable.
    """
    from deploy.cli.golden.corrections import read_topic
    from schemas.labels import CorrectionSubmitted, Purpose
    from schemas.tasks import TaskChanged

    tasks = {event.task: event async for event in read_topic(settings, TaskChanged)}
    if name not in tasks:
        known = f"Tasks: {', '.join(sorted(tasks))}" if tasks else "Apply one: ratchet tasks apply FILE"
        raise ConfigurationError(f"no task {name} is applied", known)
    stored = {
        event.correction_id
        async for event in read_topic(settings, CorrectionSubmitted)
        if event.task == name and event.purpose is Purpose.IMPORT
    }
    return tasks[name], stored


def _read(settings: Settings, change: TaskChanged, file: Path, given: dict[str, str], stored: Collection[str]) -> Plan:
    """Read the file, and leave out what it has twice and what is imported already. Raises ConfigurationError."""
    from deploy.cli.imports.events import ids_of
    from deploy.cli.imports.files import read_lines
    from deploy.cli.imports.rows import Columns, InvalidLine, RowReader
    from schemas.base import utc_now
    from services.gateway.recording.external import load_identifiers
    from shared.answers import answer_form

    lines, columns, now = list(read_lines(file)), Columns(**given), utc_now()
    _check_columns(file, lines, columns, given)
    written_at = min(datetime.fromtimestamp(file.stat().st_mtime, UTC), now)
    reader = RowReader(change.spec, columns, f"import:{file.name}"[:200], written_at, now)
    identifiers, form = load_identifiers(settings.secrets_folder), answer_form(change.spec)
    plan, seen = Plan(total=len(lines)), set[str]()
    for line in lines:
        try:
            row = reader.row(line)
        except InvalidLine as error:
            plan.errors.append((line.number, str(error)))
            continue
        correction_id = ids_of(row, change.task, identifiers).correction
        plan.repeated += correction_id in seen
        plan.stored += correction_id in stored and correction_id not in seen
        if correction_id not in seen and correction_id not in stored:
            plan.rows.append(row)
        if correction_id not in seen:
            plan.labels.update(form.labels(row.label) or ())
        seen.add(correction_id)
    return plan


def _check_columns(file: Path, lines: Sequence[Line], columns: Columns, given: dict[str, str]) -> None:
    """Raise ConfigurationError for a file without a column that was named, or that it needs."""
    present = {name: None for line in lines for name in line.values}
    if not lines:
        raise ConfigurationError(f"{file} has no rows")
    if not present:
        return  # Each line has an error, which says more.
    needed = {**given}
    if columns.messages not in present:
        needed |= {"text": columns.text, "label": columns.label}
    for name, column in needed.items():
        if column not in present:
            reason = f"{file} has no column {column!r}; it has: {', '.join(list(present)[:20])}"
            raise ConfigurationError(reason, f"Name it: --{name} COLUMN")


async def _publish(settings: Settings, change: TaskChanged, plan: Plan) -> dict[str, Any]:
    """Redact and publish the rows in the file's order. Raises DependencyUnavailable."""
    from deploy.cli.imports.events import EventMaker, send
    from schemas.catalog import topic_of
    from schemas.labels import CorrectionSubmitted
    from services.gateway.observability.shipper_status import ShipperStatus
    from services.gateway.recording.external import load_identifiers
    from services.gateway.shipper.redaction import RecordRedactor
    from shared.identity import load_or_create_key
    from shared.kafka.clients import open_producer
    from shared.kafka.latest_by_key import LatestByKey
    from shared.privacy.redaction import Redactor

    tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(type(change)).name)
    await tasks.put(change.task, change)
    await tasks.read_to({})
    key = load_or_create_key(settings.secrets_folder, "surrogates")
    redactor = RecordRedactor(tasks, lambda: Redactor(key), _REDACTIONS_REMEMBERED, ShipperStatus())
    maker = EventMaker(change, load_identifiers(settings.secrets_folder), redactor)
    published, redactions, refused = 0, 0, list[dict[str, Any]]()
    async with open_producer(settings, "ratchet-import") as producer:
        for batch in _batches(plan.rows):
            made = await maker.events(batch)
            events = [event for event in made if isinstance(event, CorrectionSubmitted)]
            errors = [(row, error) for row, error in zip(batch, made, strict=True) if isinstance(error, Exception)]
            refused += [{"line": row.number, "error": str(error)} for row, error in errors]
            await send(producer, events)
            published += len(events)
            redactions += sum(event.redactions for event in events)
    return {"published": published, "redactions": redactions, "refused": refused}


def _batches(rows: Sequence[ImportedRow]) -> Iterator[Sequence[ImportedRow]]:
    """Yield the rows in parts, with a bar on the terminal."""
    with _bar(len(rows)) as advance:
        for start in range(0, len(rows), _SENT_AT_ONCE):
            yield (batch := rows[start : start + _SENT_AT_ONCE])
            advance(len(batch))


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=stderr) as progress:
        bar = progress.add_task("rows", total=total)
        yield lambda count: progress.advance(bar, count)


def _warning(plan: Plan, change: TaskChanged) -> str:
    return f"{len(plan.rows):,} rows become corrections of {change.task}, for good. Continue?"


def _report(change: TaskChanged, file: Path, plan: Plan) -> dict[str, Any]:
    return {
        "task": change.task,
        "file": str(file),
        "lines": plan.total,
        "new": len(plan.rows),
        "imported_before": plan.stored,
        "repeated": plan.repeated,
        "labels": dict(plan.labels),
        "errors": [{"line": number, "error": error} for number, error in plan.errors],
        "published": 0,
        "redactions": 0,
        "refused": [],
    }


def _show(plan: Plan, file: Path) -> None:
    columns = ("lines", "new rows", "imported before", "repeated lines", "errors")
    cells = (plan.total, len(plan.rows), plan.stored, plan.repeated, len(plan.errors))
    show_blocks(Table(columns, [[f"{cell:,}" for cell in cells]]))
    if plan.labels:
        show_blocks(Table(("label", "rows"), [(name, f"{count:,}") for name, count in plan.labels.most_common()]))
    for number, error in plan.errors[:_SHOWN_ERRORS]:
        warn(f"{file.name}, line {number}: {error}", "red")
    if (more := len(plan.errors) - _SHOWN_ERRORS) > 0:
        warn(f"… and {more:,} lines more")
