"""`ratchet forget`: erases a person from every store, and lists what was trained on them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cli.output import say, show_blocks, warn
from deploy.cli.tasks import ask_scheduler
from deploy.lineage import HELD_OUT, LEFT_OUT, TRAINED, AdapterUse, Lineage, lineage_of, predictions_of
from schemas.datasets import PREFERENCES
from schemas.golden import GOLDEN_ROWS
from services.scheduler.settings import SchedulerSettings
from shared.errors import DependencyUnavailable
from shared.report.blocks import Table
from shared.storage.artifacts import ArtifactStore

MAX_FILE_BYTES = 5_000_000
MAX_PEOPLE = 10_000
MAX_CHARACTERS = 500
_HASH = re.compile("[0-9a-f]{24}")
_BATCH_SIZE = 25
"""People per request: at 500 characters each they stay below the scheduler's limit on bodies."""
_MAX_LISTED = 10


def forget(
    subject: Annotated[
        str | None, typer.Argument(help="The person, as the application names them in `user`.", show_default=False)
    ] = None,
    hashes: Annotated[
        list[str] | None, typer.Option("--hash", help="Or their keyed hash, as it stands in events. Repeatable.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="Or a file with one person per line; - reads standard input.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only in this task; default: in all tasks.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Forget nobody, only list what was made of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Forget a person: what they asked until now is deleted from every store, and no future dataset has it.

    That includes pictures, sound and documents of tasks that keep them, but for requests without a user, and the rows
    of golden sets that were made of what they asked. What they ask later is not affected. Kafka retains their events,
    with personal data replaced, as long as the topic does (corrections: forever); services that read them again skip
    them.
    Prints which dataset versions and golden sets hold their examples, which inspections quote them, and which adapters
    were trained on them: those stay until you delete them; the next cycle makes a version without these examples, and
    trains on it.

    [bold]Examples[/bold]

      ratchet forget customer-4711

      ratchet forget --file left-us.txt --task support-desk --yes --json

      ratchet forget --hash 5f0c…  --dry-run           only the list
    """
    people, hashes = _people(subject, file), hashes or []
    if not people and not hashes:
        raise typer.BadParameter("name a person, or give --hash or --file")
    _check(people, hashes)
    batches = [{**batch, "task": task} for batch in _batches(people, hashes)]
    answers = [_ask(batch, announce=False) for batch in batches]  # If one is refused, nobody is forgotten.
    settings = SchedulerSettings.load()
    predictions = _count_predictions(settings.lake_uri, answers)
    if not dry_run:
        if not yes:
            typer.confirm(_warning(len(people) + len(hashes), predictions, task), abort=True, err=True)
        answers = [_ask(batch, announce=True) for batch in batches]
    subjects, serving = _subjects(answers), answers[-1]["tasks"]
    at = max(datetime.fromisoformat(answer["at"]) for answer in answers)
    artifacts = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
    lineage = lineage_of(artifacts, subjects, [entry["task"] for entry in serving], at)
    report = _report(predictions, None if dry_run else at, subjects, serving, lineage)
    report["golden_rows"] = _golden_rows(answers)
    report["next"] += _in_training({use.task for use in lineage.datasets})
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _show(report)


def _ask(batch: dict[str, Any], *, announce: bool) -> dict[str, Any]:
    answer: dict[str, Any] = ask_scheduler("POST", "/api/subjects/forget", json={**batch, "announce": announce})
    return answer


def _subjects(answers: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(subject for answer in answers for subject in answer["subjects"]))


def _golden_rows(answers: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many rows of each task's golden set were theirs. Warns of those that could not be read."""
    counts: dict[str, int] = {}
    for entry in (entry for answer in answers for entry in answer["golden"]):
        if entry["problem"] is not None:
            warn(f"the golden set of {entry['task']} was not searched: {entry['problem']}", "red")
        else:
            counts[entry["task"]] = counts.get(entry["task"], 0) + entry["rows"]
    return counts


def _count_predictions(lake: str, answers: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    """Count each person's predictions in the lake; None if it cannot be read.

    Warns of people without predictions: their name may be misspelt.
    """
    tasks = [entry["task"] for entry in answers[-1]["tasks"]]
    try:
        counts = predictions_of(lake, _subjects(answers), tasks)
    except DependencyUnavailable as error:
        warn(f"{error.reason}: the number of their predictions is unknown", "yellow")
        return None
    if missing := [subject for subject, count in counts.items() if not count]:
        listed = ", ".join(missing[:_MAX_LISTED]) + (", …" if len(missing) > _MAX_LISTED else "")
        warn(
            f"The lake has no prediction of {len(missing):,} of {len(counts):,} ({listed}): they are forgotten "
            "already, asked nothing yet, or the application sends another name in `user`.",
            "yellow",
        )
    return counts


def _warning(people: int, predictions: dict[str, int] | None, task: str | None) -> str:
    who = "this person" if people == 1 else f"these {people:,} people"
    count = "" if predictions is None else f" ({sum(predictions.values()):,} predictions in the lake)"
    where = f" in {task}" if task else ""
    return f"Everything that {who} asked{where} until now{count} is deleted, forever. Continue?"


def _people(subject: str | None, file: str | None) -> list[str]:
    people = [] if subject is None else [subject]
    if file is not None:
        try:
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1) if file == "-" else _read(Path(file))
            people += [name for line in data.decode("utf-8-sig").split("\n") if (name := line.rstrip("\r"))]
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{file} cannot be read: {error}") from error
        if len(data) > MAX_FILE_BYTES or len(people) > MAX_PEOPLE:
            raise typer.BadParameter(f"{file}: at most {MAX_PEOPLE:,} people and {MAX_FILE_BYTES:,} bytes at once")
    return people


def _check(people: Sequence[str], hashes: Sequence[str]) -> None:
    """Raise BadParameter for what the scheduler would refuse. No message repeats a person: it may end up in a log."""
    if any(not 1 <= len(person) <= MAX_CHARACTERS for person in people):
        raise typer.BadParameter(f"a person's name has 1 to {MAX_CHARACTERS} characters, as in the requests' `user`")
    if any(not _HASH.fullmatch(hash_) for hash_ in hashes):
        raise typer.BadParameter("a hash is 24 characters of 0-9 and a-f: copy an event's `user_hash`")


def _read(path: Path) -> bytes:
    with path.open("rb") as opened:
        return opened.read(MAX_FILE_BYTES + 1)


def _batches(people: Sequence[str], hashes: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    for kind, names in (("users", people), ("hashes", hashes)):
        for start in range(0, len(names), _BATCH_SIZE):
            yield {kind: list(names[start : start + _BATCH_SIZE])}


def _report(
    predictions: dict[str, int] | None, until: datetime | None, subjects: Sequence[str],
    serving: Sequence[dict[str, Any]], lineage: Lineage,
) -> dict[str, Any]:  # fmt: skip
    roles = {entry["task"]: entry for entry in serving}
    adapters = [{**asdict(use), "in_use_as": _role(use, roles[use.task])} for use in lineage.adapters]
    return {
        "subjects": list(subjects),
        "predictions": predictions,
        "forgotten_until": None if until is None else until.isoformat(),
        "tasks": list(roles),
        "datasets": [use.as_json() for use in lineage.datasets],
        "golden_sets": [use.as_json() for use in lineage.golden],
        "inspections": [use.as_json() for use in lineage.inspections],
        "adapters": adapters,
        "unknown": lineage.unknown,
        "next": [*_next_steps(adapters), *_deletable(lineage)],
    }


def _role(use: AdapterUse, serving: dict[str, Any]) -> str | None:
    return next((role for role in ("primary", "previous", "candidate") if serving[role] == use.adapter), None)


def _next_steps(adapters: Sequence[dict[str, Any]]) -> list[str]:
    """What an operator does about the adapters, in words."""
    steps = []
    for task in sorted({adapter["task"] for adapter in adapters if adapter["in_use_as"]}):
        names = ", ".join(
            f"{a['adapter']} ({a['in_use_as']})" for a in adapters if a["task"] == task and a["in_use_as"]
        )
        steps.append(f"{task} uses {names}. The next cycle trains without them; start it now: ratchet cycle {task}")
        steps.append(f"Until then the base model serves if you turn ratchet.{task}.primary off in Unleash.")
    if any(not adapter["in_use_as"] for adapter in adapters):
        steps.append("Adapters that are not in use, and their datasets, can be deleted from the artifact store.")
    return steps


def _in_training(tasks: Collection[str]) -> list[str]:
    """What to do about adapters that no list has yet: a training has read the version that it began with."""
    rows = ask_scheduler("GET", "/api/tasks")["tasks"]
    return [
        f"{row['name']} trains an adapter, in {row['cycle_id']}, maybe on them: ask again, with --dry-run, at its end."
        for row in rows
        if row["name"] in tasks and row["step"] == "training"
    ]


def _deletable(lineage: Lineage) -> list[str]:
    """What quotes these people and nothing needs: the inspections of stopped builds."""
    if not lineage.inspections:
        return []
    folders = ", ".join(use.uri for use in lineage.inspections)
    return [f"Inspections of stopped builds may quote them, and nothing needs these folders: delete {folders}"]


_FILES = (TRAINED, HELD_OUT, LEFT_OUT, PREFERENCES)
"""As the columns of the table."""
_ROLES = {
    "primary": "serves everyone", "previous": "serves after a rollback",
    "candidate": "is compared with production, or waits for that", None: "not in use",
}  # fmt: skip


def _show(report: dict[str, Any]) -> None:
    if report["forgotten_until"] is not None:
        tasks = ", ".join(report["tasks"])
        say(f"forgotten: {len(report['subjects']):,} in {tasks}, everything until {report['forgotten_until']}")
    counts = report["predictions"]
    for subject in report["subjects"][:_MAX_LISTED]:
        say(f"  {subject}" + ("" if counts is None else f"  {counts[subject]:,} predictions in the lake"))
    if not report["datasets"] and report["unknown"]:
        say("No dataset version that could be searched has an example of theirs.")
    elif not report["datasets"]:
        say("No dataset version has an example of theirs, so no adapter was trained on one.")
    else:
        versions = [
            [use["name"], use["task"], *(use["rows"].get(file, 0) for file in _FILES)] for use in report["datasets"]
        ]
        columns = ("dataset version", "task", "trained on", "held out", "rejected", "compared")
        show_blocks(Table(columns, versions, whole=columns[:1]))
    if report["inspections"]:
        builds = [(use["name"], use["task"], use["rows"][LEFT_OUT]) for use in report["inspections"]]
        build = "inspection of a stopped build"
        show_blocks(Table((build, "task", "left-out rows of theirs"), builds, whole=(build,)))
    if report["adapters"]:
        adapters = [(x["adapter"], x["task"], x["examples"], _ROLES[x["in_use_as"]]) for x in report["adapters"]]
        show_blocks(Table(("adapter", "task", "examples of theirs", "now"), adapters, whole=("adapter",)))
    verb = "has" if report["forgotten_until"] is None else "had"
    for task, rows in report["golden_rows"].items():
        say(f"{task}'s golden set {verb} {rows} rows of theirs.")
    for use in report["golden_sets"]:
        say(f"The golden set {use['name']} has {use['rows'][GOLDEN_ROWS]} of them until you delete {use['uri']}.")
    for folder, reason in report["unknown"].items():
        say(f"unknown for {folder}: {reason}", "yellow")
    for step in report["next"]:
        say(step)
