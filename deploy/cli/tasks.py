"""`ratchet tasks` and `ratchet cycle`: what an operator does to a task by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cli.output import ask, say, show_blocks, warn
from services.scheduler.settings import SchedulerSettings
from shared.answers import answer_form
from shared.errors import RatchetError
from shared.report.blocks import Table

app = typer.Typer(no_args_is_help=True, help="A task is one YAML file: check it, apply it, see what is applied.")

File = Annotated[Path, typer.Argument(help="The task's YAML; deploy/tasks/template.yaml explains every key.")]


@app.command()
def check(file: File) -> None:
    """Read a task file as `apply` would, and change nothing: a mistake is named with its place.

    [bold]Example[/bold]

      ratchet tasks check my-task.yaml
    """
    from services.scheduler.task_files import read_task

    spec = read_task(file)
    golden = spec.golden_set.rows if spec.golden_set else 0
    has = f"{answer_form(spec).summary}, {golden} golden rows"
    say(f"{file}: {spec.kind} task {spec.name}, {has}, revision {spec.revision}")


@app.command()
def apply(file: File) -> None:
    """Check a task file and copy it to `<home>/tasks`, which the scheduler on this machine watches. Idempotent.

    `<home>` is RATCHET_HOME (default: .ratchet here). The gateway serves the task some seconds later.

    [bold]Example[/bold]

      cp deploy/tasks/template.yaml my-task.yaml      then edit it

      ratchet tasks apply my-task.yaml
    """
    from services.scheduler.task_files import apply_task

    folder = SchedulerSettings.load().tasks_folder
    spec = apply_task(file, folder)
    say(f"task {spec.name} is in {folder}; its next cycle: {spec.cron} (cron, UTC)")


@app.command("list")
def list_tasks(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: tasks and invalid files.")] = False,
) -> None:
    """Show the tasks that the scheduler has, when each one's next cycle starts (UTC), and where a cycle stands.

    A file that is invalid is named on standard error: its task stays as it was.

    [bold]Examples[/bold]

      ratchet tasks list

      ratchet tasks list --json          also each invalid file, and what is wrong with it
    """
    found = ask_scheduler("GET", "/api/tasks")
    if as_json:
        return typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    columns = ("name", "kind", "base_model", "revision", "labels", "cron", "next_cycle_at", "cycle_id", "step")
    rows = [
        [f"{row['step']}, late" if name == "step" and row["late"] else str(row.get(name) or "") for name in columns]
        for row in found["tasks"]
    ]
    show_blocks(Table(columns, rows, whole=("name", "revision", "next_cycle_at", "cycle_id")))
    for fault in found["broken"].values():
        warn(f"invalid, and its task stays as it was: {fault}", "yellow")


def cycle(
    task: Annotated[str, typer.Argument(help="The task's name.")],
    stop: Annotated[bool, typer.Option("--stop", help="End, as failed, the one that holds up the next.")] = False,
) -> None:
    """Start a cycle of a task now, instead of by its cron, and print its id. Follow it in the console.

    With fewer corrections than a data set needs (by default 50 rows to train on and 10 held out) it stops there, and
    the console says how many are missing.

    A cycle whose step never answers holds up all later ones: `--stop` ends it as failed, with the job that works for
    it. One in its rollout holds up none: `ratchet rollout rollback TASK` ends its candidate. While the task's file is
    invalid, none is started.

    [bold]Examples[/bold]

      ratchet cycle support-desk

      ratchet cycle support-desk --stop
    """
    if stop:
        return _stop_cycle(task)
    say(f"started {ask_scheduler('POST', '/api/cycles', json={'task': task})['cycle_id']}")


def _stop_cycle(task: str) -> None:
    rows = [row for row in ask_scheduler("GET", "/api/tasks")["tasks"] if row["name"] == task and row["cycle_id"]]
    if not rows:
        raise RatchetError(f"no cycle of {task} is running", "Which are: ratchet tasks list")
    (row,) = rows
    if row["step"] == "rollout":
        reason = f"{row['cycle_id']} has come to its rollout, which holds up no cycle"
        raise RatchetError(reason, f"To end its candidate: ratchet rollout rollback {task}")
    ask_scheduler("POST", f"/api/cycles/{row['cycle_id']}/stop")
    say(f"stopped {row['cycle_id']}")


def ask_scheduler(method: str, path: str, **options: Any) -> Any:
    """Send a request to the scheduler and return the body of its answer.

    Raises DependencyUnavailable if the scheduler does not answer, RatchetError if it refuses.
    """
    settings = SchedulerSettings.load()
    return ask("scheduler", settings.scheduler_host, settings.scheduler_port, method, path, **options)
