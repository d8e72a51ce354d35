"""`ratchet forget`: a person leaves the lake, the queues and all data sets to come; and what was trained on them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deploy.cli.tasks import ask_scheduler
from deploy.lineage import AdapterUse, Lineage, lineage_of, predictions_of
from services.scheduler.settings import SchedulerSettings
from shared.errors import DependencyUnavailable

MAX_FILE_BYTES = 5_000_000
MAX_PEOPLE = 10_000
MAX_CHARACTERS = 500
_HASH = re.compile("[0-9a-f]{24}")
_AT_ONCE = 25
"""People a request: 500 characters each stay below the scheduler's limit on bodies."""
_LISTED = 10

console = Console()
errors = Console(stderr=True)


def forget(
    subject: Annotated[
        str | None, typer.Argument(help="The person, as the application names them in `user`.", show_default=False)
    ] = None,
    hashes: Annotated[
        list[str] | None, typer.Option("--hash", help="Or their keyed hash, as it stands in events. Repeatable.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="Or a file with a person a line; - reads them from the input.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only in this task; default: in all.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Forget nobody, only list what was made of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Forget a person: what they asked until now leaves every store, and no data set to come has it.

    What they do later is new. Kafka keeps its events, with personal data replaced, as long as their topic does
    (corrections: for ever); whoever reads them again drops these.
    Prints which dataset versions hold their examples and which adapters were trained on them: those stay as they
    are until you delete them; the next cycle trains without.

    [bold]Examples[/bold]

      ratchet forget customer-4711

      ratchet forget --file left-us.txt --task support-desk --yes --json

      ratchet forget --hash 5f0c…  --dry-run           only the list
    """
    people, known = _people(subject, file), hashes or []
    if not people and not known:
        raise typer.BadParameter("name a person, or give --hash or --file")
    _check(people, known)
    batches = [{**batch, "task": task} for batch in _batches(people, known)]
    answers = [_ask(batch, announce=False) for batch in batches]  # Nobody is forgotten where one of them is refused.
    settings = SchedulerSettings.load()
    seen = _seen(settings.lake_uri, answers)
    if not dry_run:
        if not yes:
            typer.confirm(_warning(len(people) + len(known), seen, task), abort=True, err=True)
        answers = [_ask(batch, announce=True) for batch in batches]
    subjects = _subjects(answers)
    serving: list[dict[str, Any]] = answers[-1]["tasks"]
    at = max(datetime.fromisoformat(answer["at"]) for answer in answers)
    lineage = lineage_of(settings.artifacts_uri, subjects, [one["task"] for one in serving], at)
    report = _report(seen, None if dry_run else at, subjects, serving, lineage)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _show(report)


def _ask(batch: dict[str, Any], *, announce: bool) -> dict[str, Any]:
    answer: dict[str, Any] = ask_scheduler("POST", "/api/subjects/forget", json={**batch, "announce": announce})
    return answer


def _subjects(answers: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(one for answer in answers for one in answer["subjects"]))


def _seen(lake: str, answers: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    """Predictions of each person in the lake; says of whom there are none: a name may be misspelt. None: not known."""
    tasks = [one["task"] for one in answers[-1]["tasks"]]
    try:
        seen = predictions_of(lake, _subjects(answers), tasks)
    except DependencyUnavailable as error:
        errors.print(f"{error.reason}: not known how much they asked", style="yellow", markup=False, soft_wrap=True)
        return None
    if strangers := [subject for subject, count in seen.items() if not count]:
        some = ", ".join(strangers[:_LISTED]) + (", …" if len(strangers) > _LISTED else "")
        errors.print(
            f"The lake has no prediction of {len(strangers):,} of {len(seen):,} ({some}): they are forgotten already, "
            "asked nothing yet, or the application names them otherwise in `user`.",
            style="yellow", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    return seen


def _warning(count: int, seen: dict[str, int] | None, task: str | None) -> str:
    who = "this person" if count == 1 else f"these {count:,} people"
    many = "" if seen is None else f" ({sum(seen.values()):,} predictions in the lake)"
    where = f" in {task}" if task else ""
    return f"Everything that {who} asked{where} until now{many} is deleted, for ever. Go on?"


def _people(subject: str | None, file: str | None) -> list[str]:
    people = [] if subject is None else [subject]
    if file is not None:
        try:
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1) if file == "-" else _read(Path(file))
            people += [name for line in data.decode().split("\n") if (name := line.rstrip("\r"))]
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{file} cannot be read: {error}") from error
        if len(data) > MAX_FILE_BYTES or len(people) > MAX_PEOPLE:
            raise typer.BadParameter(f"{file}: at most {MAX_PEOPLE:,} people and {MAX_FILE_BYTES:,} bytes at once")
    return people


def _check(people: Sequence[str], hashes: Sequence[str]) -> None:
    """What the scheduler would refuse. No message repeats a person: it may end up in a log."""
    if any(not 1 <= len(person) <= MAX_CHARACTERS for person in people):
        raise typer.BadParameter(f"a person is named in 1 to {MAX_CHARACTERS} characters, as in the requests' `user`")
    if any(not _HASH.fullmatch(one) for one in hashes):
        raise typer.BadParameter("a hash is 24 characters of 0-9 and a-f: copy an event's `user_hash`")


def _read(path: Path) -> bytes:
    with path.open("rb") as opened:
        return opened.read(MAX_FILE_BYTES + 1)


def _batches(people: Sequence[str], hashes: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    for name, all_of_them in (("users", people), ("hashes", hashes)):
        for start in range(0, len(all_of_them), _AT_ONCE):
            yield {name: list(all_of_them[start : start + _AT_ONCE])}


def _report(
    seen: dict[str, int] | None, until: datetime | None, subjects: Sequence[str], serving: Sequence[dict[str, Any]],
    lineage: Lineage,
) -> dict[str, Any]:  # fmt: skip
    roles = {one["task"]: one for one in serving}
    adapters = [{**asdict(use), "in_use_as": _role(use, roles[use.task])} for use in lineage.adapters]
    return {
        "subjects": list(subjects),
        "predictions": seen,
        "forgotten_until": None if until is None else until.isoformat(),
        "tasks": [one["task"] for one in serving],
        "datasets": [asdict(use) for use in lineage.datasets],
        "adapters": adapters,
        "unknown": lineage.unknown,
        "next": _next(adapters),
    }


def _role(use: AdapterUse, serving: dict[str, Any]) -> str | None:
    return next((role for role in ("primary", "previous", "candidate") if serving[role] == use.adapter), None)


def _next(adapters: Sequence[dict[str, Any]]) -> list[str]:
    """What an operator does about the adapters, in words."""
    advice = []
    for task in sorted({one["task"] for one in adapters if one["in_use_as"]}):
        names = ", ".join(
            f"{a['adapter']} ({a['in_use_as']})" for a in adapters if a["task"] == task and a["in_use_as"]
        )
        advice.append(f"{task} uses {names}. The next cycle trains without them; start it now: ratchet cycle {task}")
        advice.append(f"Until then the base model serves if you turn ratchet.{task}.primary off in Unleash.")
    if any(not one["in_use_as"] for one in adapters):
        advice.append("Adapters that are not in use, and their datasets, can be deleted from the artifact store.")
    return advice


_WORDS = {
    "primary": "serves everyone", "previous": "serves after a rollback", "candidate": "is compared with production",
    None: "not in use",
}  # fmt: skip


def _show(report: dict[str, Any]) -> None:
    people, tasks = len(report["subjects"]), ", ".join(report["tasks"])
    if report["forgotten_until"] is not None:
        console.print(f"forgotten: {people:,} in {tasks}, all until {report['forgotten_until']}", highlight=False)
    for subject in report["subjects"][:_LISTED]:
        asked = "" if report["predictions"] is None else f"  {report['predictions'][subject]:,} predictions in the lake"
        console.print(f"  {subject}{asked}", highlight=False)
    if not report["datasets"]:
        console.print("No dataset version holds an example of theirs, so no adapter was trained on one.")
    else:
        versions = Table("dataset version", "task", "trained on", "held out", "rejected", title_justify="left")
        for one in report["datasets"]:
            counts = (str(one[name]) for name in ("training", "held_out", "rejected"))
            versions.add_row(one["dataset_id"], one["task"], *counts)
        console.print(versions)
    if report["adapters"]:
        adapters = Table("adapter", "task", "examples of theirs", "now")
        for one in report["adapters"]:
            adapters.add_row(one["adapter"], one["task"], str(one["examples"]), _WORDS[one["in_use_as"]])
        console.print(adapters)
    for folder, reason in report["unknown"].items():
        console.print(f"not known of {folder}: {reason}", style="yellow", highlight=False, markup=False)
    for line in report["next"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
