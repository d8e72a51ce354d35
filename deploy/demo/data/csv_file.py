"""Reads a CSV file into clean rows, and says what is wrong with it before anything is started."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigurationError
from shared.model.texts import text_hash

MAX_FILE_BYTES = 100 * 1024 * 1024
MAX_ROWS = 500_000
MAX_TEXT_CHARS = 2_000
MAX_LABEL_CHARS = 120


class DataError(ConfigurationError):
    """The file cannot be used as it is; the message says what to change."""


@dataclass(frozen=True)
class DataRow:
    """A message and its true label. `part`: the file's own column of that name, or empty."""

    text: str
    label: str
    part: str = ""


@dataclass(frozen=True)
class CsvData:
    """Clean rows of the chosen labels. `dropped`: reason → the number of rows left out for it."""

    rows: tuple[DataRow, ...]
    labels: tuple[str, ...]
    dropped: dict[str, int]


def read_rows(path: Path, text: str, label: str, labels: int | None = None) -> CsvData:
    """Read the rows of the `labels` most frequent labels (None: all). Raises DataError with what to change.

    Drops and counts empty texts or labels, texts over 2,000 characters, repeated texts, and texts that carry
    two different labels.
    """
    dropped: Counter[str] = Counter()
    rows = without_duplicates(list(_usable_rows(path, text, label, dropped)), dropped)
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
    return CsvData(selected, tuple(sorted(chosen)), dict(dropped))


def _usable_rows(path: Path, text: str, label: str, dropped: Counter[str]) -> Iterator[DataRow]:
    for record in _read_records(path, (text, label)):
        row = DataRow((record[text] or "").strip(), (record[label] or "").strip(), (record.get("part") or "").strip())
        if not row.text:
            dropped["empty text"] += 1
        elif not row.label:
            dropped["empty label"] += 1
        elif len(row.text) > MAX_TEXT_CHARS:
            dropped[f"text over {MAX_TEXT_CHARS:,} characters"] += 1
        elif len(row.label) > MAX_LABEL_CHARS:
            raise DataError(
                f"{path}: a label has {len(row.label)} characters ({row.label[:40]!r}…); at most {MAX_LABEL_CHARS}",
                f"Is --label {label} the column of the classes, not of the texts?",
            )
        else:
            yield row


def _read_records(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"no such file: {path}", "Give --data the path of a CSV file.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(
            f"{path} has {path.stat().st_size / 1e6:.0f} MB; the limit is {MAX_FILE_BYTES / 1e6:.0f} MB",
            "Take a sample of it: the loop uses a few hundred rows.",
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            present = reader.fieldnames or []
            missing = [column for column in columns if column not in present]
            if missing:
                raise DataError(
                    f"{path} has no column {', '.join(map(repr, missing))}; it has: {', '.join(present) or 'none'}",
                    _way_out_of_columns(present),
                )
            for number, record in enumerate(reader, start=1):
                if number > MAX_ROWS:
                    raise DataError(f"{path} has more than {MAX_ROWS:,} rows", "Take a sample of it.")
                yield record
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start})", f"Convert it: iconv -f {encoding} -t UTF-8 {path} > utf8.csv"
        ) from error
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}", "Is a quotation mark left open?") from error


def _way_out_of_columns(present: Sequence[str]) -> str:
    """Say what to do about a missing column: a spreadsheet of many countries separates them otherwise."""
    for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(present) == 1 and sign in present[0]:
            return f"Its columns have {name} between them. Save it with commas."
    return "Name the columns with --text and --label. The first line has their names."


def without_duplicates(rows: Sequence[DataRow], dropped: Counter[str]) -> list[DataRow]:
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
