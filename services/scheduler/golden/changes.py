"""Changes a task's golden file in the folder that the scheduler watches. Each change has an author and a reason.

<task>.golden.jsonl            the rows; the scheduler publishes them as a golden set
<task>.golden.history.jsonl    what was done to them (`history.py`)
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from schemas.golden import GoldenRow
from services.scheduler.golden.file import MAX_ROWS, golden_lines
from services.scheduler.golden.history import (
    Action,
    Change,
    append_changes,
    history_path,
    read_changes,
    refuse_forgotten,
)
from services.scheduler.task_files import TaskFile, read_task_file, set_golden_file
from shared.errors import ConfigurationError
from shared.files import write_atomically

_Edit = tuple[list[GoldenRow], list[Change]]
"""The rows of a changed golden set, and what changed."""


@dataclass(frozen=True)
class Author:
    """Who changes a golden set, when and why."""

    by: str
    reason: str
    at: datetime

    def change(self, action: Action, row: GoldenRow) -> Change:
        fields = row.model_dump(include={"row_id", "part", "must_pass", "prediction_id"})
        return Change(at=self.at, by=self.by, reason=self.reason, action=action, **fields)


def find_task(folder: Path, task: str) -> TaskFile:
    """Return a task's file in the scheduler's folder. Raises ConfigurationError."""
    own = folder / f"{task}.yaml"
    for path in [own] if own.is_file() else sorted(folder.glob("*.yaml")):
        try:
            file = read_task_file(path)
        except ConfigurationError:
            if path == own:
                raise
            continue
        if file.spec.name == task:
            return file
    raise ConfigurationError(
        f"no task {task} in {folder}", "Apply it first, on the scheduler's machine: ratchet tasks apply FILE"
    )


def add_rows(folder: Path, task: str, rows: Sequence[GoldenRow], author: Author) -> None:
    """Add rows to a golden set. Raises ConfigurationError, and then adds none, if one is in it already, or was of
    somebody who is forgotten."""

    def edit(file: TaskFile) -> _Edit:
        refuse_forgotten(rows, _history_path(file), "these")
        known = {row.row_id for row in file.golden}
        if doubles := [row.row_id for row in rows if row.row_id in known]:
            raise ConfigurationError(
                f"{len(doubles)} of these questions are in {task}'s golden set already: {doubles[0]} …",
                f"ratchet golden list {task}; to change an answer, remove the row and add it again.",
            )
        if (total := len(known) + len(rows)) > MAX_ROWS:
            raise ConfigurationError(
                f"a golden set has at most {MAX_ROWS:,} rows; {task} would have {total:,}",
                "Each candidate is asked all of them: remove some first.",
            )
        return [*file.golden, *rows], [author.change("added", row) for row in rows]

    _change(folder, task, edit)


def mark_row(folder: Path, task: str, row_id: str, must_pass: bool, author: Author) -> None:
    """Make a row must-pass, or no longer. Raises ConfigurationError if there is no such row."""

    def edit(file: TaskFile) -> _Edit:
        (row,) = _chosen(file, [row_id])
        marked = row.model_copy(update={"must_pass": must_pass})
        rows = [marked if other is row else other for other in file.golden]
        return rows, [author.change("marked" if must_pass else "unmarked", marked)]

    _change(folder, task, edit)


def remove_rows(folder: Path, task: str, row_ids: Collection[str], author: Author, action: Action = "removed") -> None:
    """Remove rows from a golden set. Raises ConfigurationError, and then removes none, if one is not in it."""

    def edit(file: TaskFile) -> _Edit:
        removed = _chosen(file, row_ids)
        return [row for row in file.golden if row not in removed], [author.change(action, row) for row in removed]

    _change(folder, task, edit)


@dataclass(frozen=True)
class ForgottenRows:
    """How many golden rows of a task were people's who are forgotten. `problem`: why its rows are not known."""

    task: str
    rows: int
    problem: str | None = None


def forget_people(
    folder: Path, tasks: Collection[str], subjects: Collection[str], author: Author, *, dry_run: bool = False
) -> list[ForgottenRows]:
    """Remove the golden rows made from what these people asked up to `author.at`; returns the tasks that have some, or
    whose files cannot be read."""
    files: dict[str, TaskFile] = {}
    unreadable: dict[str, ConfigurationError] = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            file = read_task_file(path)
        except ConfigurationError as error:
            unreadable[path.stem] = error
        else:
            if path.stem == file.spec.name or file.spec.name not in files:  # As `find_task` chooses.
                files[file.spec.name] = file
    of_no_task = next((error for name, error in unreadable.items() if name not in tasks), None)
    forgotten = []
    for task in sorted(tasks):
        if problem := unreadable.get(task, None if task in files else of_no_task):  # It may be that task's file.
            forgotten.append(ForgottenRows(task, 0, problem.reason))
            continue
        golden = files[task].golden if task in files else ()
        if rows := [row.row_id for row in golden if row.is_of(subjects, author.at)]:
            if not dry_run:
                remove_rows(folder, task, rows, author, "forgotten")
            forgotten.append(ForgottenRows(task, len(rows)))
    return forgotten


def read_history(file: TaskFile) -> list[Change]:
    """Return all changes of a golden set, oldest first. Raises ConfigurationError for a line that is none."""
    return read_changes(_history_path(file))


def _change(folder: Path, task: str, edit: Callable[[TaskFile], _Edit]) -> None:
    find_task(folder, task)  # Raises before the folder gets a lock file.
    with _locked(folder / f".{task}.golden.lock"):
        file = find_task(folder, task)
        rows, changes = edit(file)
        path, lines = file.golden_path or file.path.parent / f"{task}.golden.jsonl", golden_lines(rows)
        # First: a row without a history would be one that nobody answers for.
        append_changes(_history_path(file), changes)
        write_atomically(path, lines)
        if file.golden_path is None:
            set_golden_file(file.path, path.name)


def _chosen(file: TaskFile, row_ids: Collection[str]) -> list[GoldenRow]:
    rows = [row for row in file.golden if row.row_id in row_ids]
    if missing := set(row_ids) - {row.row_id for row in rows}:
        name = file.spec.name
        raise ConfigurationError(f"{name}'s golden set has no row {sorted(missing)[0]}", f"ratchet golden list {name}")
    return rows


def _history_path(file: TaskFile) -> Path:
    return history_path(file.path.parent, file.spec.name)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one command change a golden set at a time."""
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
