"""`ratchet tasks` and `ratchet cycle`: what an operator does to a task by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from services.scheduler.settings import SchedulerSettings
from services.scheduler.task_files import apply_task, read_task
from shared.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True, help="A task is one YAML file: check it, apply it, see what is applied.")
console = Console()

File = Annotated[Path, typer.Argument(help="The task's YAML; deploy/tasks/template.yaml explains every key.")]


@app.command()
def check(file: File) -> None:
    """Read a task file as `apply` would, and change nothing."""
    with _explained():
        spec = read_task(file)
    console.print(f"{file}: {spec.kind} task {spec.name}, {len(spec.labels)} labels, revision {spec.revision}")


@app.command()
def apply(file: File) -> None:
    """Check a task file and hand it to the scheduler, which announces it within seconds. Again: changes it.

    [bold]Example[/bold]

      ratchet tasks apply deploy/tasks/support-desk.yaml
    """
    settings = SchedulerSettings.load()
    with _explained():
        spec = apply_task(file, settings.tasks_folder)
    console.print(f"task {spec.name} is in {settings.tasks_folder}; its next cycle: {spec.cron} (cron, UTC)")


@app.command("list")
def list_tasks() -> None:
    """The tasks as the scheduler knows them."""
    rows = ask_scheduler("GET", "/api/tasks")["tasks"]
    columns = ("name", "kind", "base_model", "revision", "labels", "cron", "next_turn", "cycle_id", "step")
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row.get(column) or "") for column in columns))
    console.print(table)


def cycle(task: Annotated[str, typer.Argument(help="The task's name.")]) -> None:
    """Start a cycle of a task now, instead of by its cron. Follow it in the console."""
    console.print(f"started {ask_scheduler('POST', '/api/cycles', json={'task': task})['cycle_id']}")


def ask_scheduler(method: str, path: str, **options: Any) -> Any:
    """The scheduler's answer. Without one, or on an error, the command ends: it prints why, and the way out."""
    settings = SchedulerSettings.load()
    url = f"http://{settings.scheduler_host}:{settings.scheduler_port}"
    try:
        response = httpx.request(method, url + path, timeout=30.0, **options)
    except httpx.HTTPError as error:
        console.print(f"the scheduler does not answer at {url}: {error}\nIs it running? ratchet status", style="red")
        raise typer.Exit(1) from error
    body = response.json()
    if response.is_error:
        console.print(body["error"]["message"], style="red")
        raise typer.Exit(1)
    return body


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        console.print(f"{error.reason}\n{error.way_out}".strip(), style="red", highlight=False, markup=False)
        raise typer.Exit(1) from error
