"""Reads a file into clean rows, and says what is wrong with it before anything is started.

A CSV file has labels. JSON lines have any other answers; a row's label is then its answer in the spelling that is
trained on.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.tasks import TaskKind, TaskSpec
from shared.answers import answer_form
from shared.errors import ConfigurationError
from shared.grading.json_values import read_json
from shared.model.texts import text_hash

MAX_FILE_BYTES = 100 * 1024 * 1024
MAX_TEXT_CHARS = 2_000
MAX_LABEL_CHARS = 120
MIN_TEXT_ANSWER_CHARS = 20
"""Shorter answers of a generation are not trained on (`dataset.min_answer_chars`)."""
LINES: Mapping[TaskKind, str] = {
    TaskKind.EXTRACTION: 'Each line is {"text": "what was written", "answer": {…}}; the answer is JSON by the schema.',
    TaskKind.TOOLS: 'Each line is {"text": "…", "calls": [{"name": "function", "arguments": {…}}]}; where no call is '
    'right, {"text": …, "answer": "a text"}.',
    TaskKind.GENERATION: 'Each line is {"text": "what was asked", "answer": "what should be answered"}.',
}
"""What a line of JSON must be."""


class DataError(ConfigurationError):
    """The file cannot be used as it is; the message says what to change."""


@dataclass(frozen=True)
class DataRow:
    """A message and its right answer. `part`: the file's own column of that name, or empty."""

    text: str
    label: str
    part: str = ""


@dataclass(frozen=True)
class LoopData:
    """Clean rows, and the labels that a CSV file has. `dropped`: reason → the number of rows left out for it."""

    rows: tuple[DataRow, ...]
    labels: tuple[str, ...]
    dropped: dict[str, int]


def read_rows(path: Path, text: str, label: str, labels: int | None = None) -> LoopData:
    """Read the CSV file's rows of the `labels` most frequent labels (None: all). Raises DataError with what to change.

    Drops and counts empty texts or labels, texts over 2,000 characters, repeated texts, and texts that carry
    two different labels.
    """
    dropped: Counter[str] = Counter()
    found = [
        DataRow((record[text] or "").strip(), (record[label] or "").strip(), (record.get("part") or "").strip())
        for record in _records(path, (text, label))
    ]
    rows = _usable(found, dropped)
    if longest := max((row.label for row in rows if len(row.label) > MAX_LABEL_CHARS), default=""):
        raise DataError(
            f"{path}: a label has {len(longest)} characters ({longest[:40]!r}…); at most {MAX_LABEL_CHARS}",
            f"Is --label {label} the column of the classes, not of the texts?",
        )
    counts = Counter(row.label for row in rows)
    chosen = sorted(sorted(counts), key=lambda name: -counts[name])[:labels]
    if len(chosen) < 2:
        raise DataError(
            f"{path} has {len(chosen)} label{'' if len(chosen) == 1 else 's'} in column {label!r}; two are needed",
            "Is --label the column of the classes? Give --labels 2 or more.",
        )
    selected = tuple(row for row in rows if row.label in set(chosen))
    if len(selected) < len(rows):
        dropped["of a label that was not chosen"] = len(rows) - len(selected)
    return LoopData(selected, tuple(sorted(chosen)), dict(dropped))


def read_lines(path: Path, spec: TaskSpec) -> LoopData:
    """Read the JSON lines of a task whose answers have this form. Raises DataError with the line and what to change.

    Drops and counts as `read_rows` does, and texts as answers that are too short to train on.
    """
    dropped: Counter[str] = Counter()
    rows = []
    for number, line in enumerate(_content(path).split("\n"), start=1):
        try:
            rows += [_row(read_json(line), spec)] if line.strip() else []
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}", LINES[spec.kind]) from error
    least = 1 if answer_form(spec).is_exact else MIN_TEXT_ANSWER_CHARS
    return LoopData(tuple(_usable(rows, dropped, least)), (), dict(dropped))


def _records(path: Path, columns: Sequence[str]) -> Iterable[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(_content(path), newline=""))
    try:
        present = reader.fieldnames or []
        if missing := [column for column in columns if column not in present]:
            raise DataError(
                f"{path} has no column {', '.join(map(repr, missing))}; it has: {', '.join(present) or 'none'}",
                _way_out_of_columns(present),
            )
        return list(reader)
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}", "Is a quotation mark left open?") from error


def _way_out_of_columns(present: Sequence[str]) -> str:
    """Say what to do about a missing column: a spreadsheet of many countries separates them otherwise."""
    for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(present) == 1 and sign in present[0]:
            return f"Its columns have {name} between them. Save it with commas."
    return "Name the columns with --text and --label. The first line has their names."


def _content(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"no such file: {path}", "Give --data the path of a CSV file, or of JSON lines.")
    if path.stat().st_size > MAX_FILE_BYTES:
        reason = f"{path} has {path.stat().st_size / 1e6:.0f} MB; the limit is {MAX_FILE_BYTES / 1e6:.0f} MB"
        raise DataError(reason, "Take a sample of it: the loop uses a few hundred rows.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
        way_out = f"Convert it: iconv -f {encoding} -t UTF-8 {path} > utf8{path.suffix}"
        raise DataError(f"{path} is not UTF-8 (byte {error.start})", way_out) from error


def _row(record: Any, spec: TaskSpec) -> DataRow:
    if not isinstance(record, dict) or not isinstance(text := record.get("text"), str) or not text.strip():
        raise ValueError("expected an object with a `text` that is not empty")
    return DataRow(text.strip(), answer_form(spec).canonical(_answer(record)).strip(), str(record.get("part") or ""))


def _answer(record: Mapping[str, Any]) -> str:
    """A line's answer as one text, its calls as `Answer.plain` has them."""
    calls, answer = record.get("calls") or [], record.get("answer")
    if not calls and answer is None:
        raise ValueError("expected an `answer`, or `calls`")
    if calls and answer is not None:
        raise ValueError("expected either `calls` or `answer`")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError("`calls` must be a list of objects")
    written = [{"name": str(call.get("name")), "arguments": json.dumps(call.get("arguments", {}))} for call in calls]
    if written:
        return json.dumps(written)
    return answer if isinstance(answer, str) else json.dumps(answer)


def _usable(rows: Iterable[DataRow], dropped: Counter[str], least: int = 1) -> list[DataRow]:
    """The rows that can be trained on. `least`: characters that an answer must have."""
    usable = []
    for row in rows:
        if not row.text:
            dropped["empty text"] += 1
        elif not row.label:
            dropped["empty label"] += 1
        elif len(row.label) < least:
            dropped[f"answer under {least} characters"] += 1
        elif len(row.text) > MAX_TEXT_CHARS:
            dropped[f"text over {MAX_TEXT_CHARS:,} characters"] += 1
        else:
            usable.append(row)
    return _without_duplicates(usable, dropped)


def _without_duplicates(rows: Sequence[DataRow], dropped: Counter[str]) -> list[DataRow]:
    """Return the first of equal texts, or none of them if their labels differ: the true one is unknown."""
    first: dict[str, DataRow] = {}
    contradictory: set[str] = set()
    for row in rows:
        key = text_hash(row.text)
        if first.setdefault(key, row).label != row.label:
            contradictory.add(key)
    unique = [row for key, row in first.items() if key not in contradictory]
    ambiguous = sum(text_hash(row.text) in contradictory for row in rows) if contradictory else 0
    if ambiguous:
        dropped["same text with different labels"] = ambiguous
    if len(rows) - ambiguous > len(unique):
        dropped["repeated text"] = len(rows) - ambiguous - len(unique)
    return unique
