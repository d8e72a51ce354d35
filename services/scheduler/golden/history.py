"""The history of a golden set: who did what to a row, when and why. It has no texts.

<task>.golden.history.jsonl    one `Change` a line, only ever appended to
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel

from schemas.golden import GoldenPart, GoldenRow
from shared.errors import ConfigurationError

Action = Literal["added", "marked", "unmarked", "removed", "forgotten"]


class Change(BaseModel):
    """One line of a history: who did what to a row, when and why."""

    at: AwareDatetime
    by: str
    action: Action
    row_id: str
    part: GoldenPart
    must_pass: bool
    prediction_id: str | None = None
    reason: str


def history_path(folder: Path, task: str) -> Path:
    return folder / f"{task}.golden.history.jsonl"


def read_changes(path: Path) -> list[Change]:
    """Return all changes, oldest first; none of a file that is not there. Raises ConfigurationError for other lines."""
    if not path.is_file():
        return []
    try:
        return [Change.model_validate_json(line) for line in path.read_bytes().split(b"\n") if line.strip()]
    except ValueError as error:
        raise ConfigurationError(f"{path} has a line that is no change: {error}", "Only Ratchet writes it.") from error


def append_changes(path: Path, changes: Sequence[Change]) -> None:
    with path.open("ab") as history:
        history.write(b"".join(change.model_dump_json().encode() + b"\n" for change in changes))
        history.flush()
        os.fsync(history.fileno())


def refuse_forgotten(rows: Iterable[GoldenRow], path: Path, source: str) -> None:
    """Raise ConfigurationError if any row is of somebody who was forgotten: an older copy of a file still has it.

    Told by its prediction, where it has none by the row itself, since the history says of nobody who they are.
    """
    gone = {change.prediction_id or change.row_id for change in read_changes(path) if change.action == "forgotten"}
    if back := [row.row_id for row in rows if (row.prediction_id or row.row_id) in gone]:
        raise ConfigurationError(
            f"{len(back)} rows of {source} are of people who were forgotten since: {', '.join(back[:5])}",
            "Delete these lines there, and in every other copy.",
        )
