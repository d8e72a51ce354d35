"""A CSV file to clean rows: what is wrong with a file is said before anything is started."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigurationError
from shared.model.near_duplicates import text_hash

MAX_FILE_BYTES = 100 * 1024 * 1024
MAX_ROWS = 500_000
MAX_TEXT_CHARS = 2_000
MAX_LABEL_CHARS = 120


class DataError(ConfigurationError):
    """The file cannot be used as it is; the message says what to change."""


@dataclass(frozen=True)
class Row:
    """One message and its true label. `part` is given by the file itself, or empty."""

    text: str
    label: str
    part: str = ""


@dataclass(frozen=True)
class Data:
    """Clean rows of the chosen labels, and what was left out and why."""

    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    dropped: dict[str, int]


def read_rows(path: Path, text: str, label: str, labels: int | None = None) -> Data:
    """Rows of the `labels` most frequent labels (None: all). Raises DataError with what to change.

    Dropped, and counted: empty texts or labels, texts over 2,000 characters, repeated texts, and texts that carry
    two different labels.
    """
    dropped: Counter[str] = Counter()
    rows = _without_repeats(list(_usable(path, text, label, dropped)), dropped)
    counts = Counter(row.label for row in rows)
    chosen = sorted(sorted(counts), key=lambda name: -counts[name])[:labels]
    if len(chosen) < 2:
        raise DataError(
            f"{path} has {len(chosen)} label{'' if len(chosen) == 1 else 's'} in column {label!r}; two are the least",
            "Is --label the column of the classes? Give --labels 2 or more.",
        )
    kept = tuple(row for row in rows if row.label in set(chosen))
    if len(kept) < len(rows):
        dropped["of a label that was not chosen"] = len(rows) - len(kept)
    return Data(kept, tuple(sorted(chosen)), dict(dropped))


def _usable(path: Path, text: str, label: str, dropped: Counter[str]) -> Iterator[Row]:
    for record in _records(path, (text, label)):
        row = Row((record[text] or "").strip(), (record[label] or "").strip(), (record.get("part") or "").strip())
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


def _records(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"no such file: {path}", "Give --data the path of a CSV file.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(
            f"{path} has {path.stat().st_size / 1e6:.0f} MB; the limit is {MAX_FILE_BYTES / 1e6:.0f} MB",
            "Take a sample of it: a turn of the loop uses a few hundred rows.",
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            there = reader.fieldnames or []
            missing = [column for column in columns if column not in there]
            if missing:
                raise DataError(
                    f"{path} has no column {', '.join(map(repr, missing))}; it has: {', '.join(there) or 'none'}",
                    "Name the columns with --text and --label.",
                )
            for number, record in enumerate(reader, start=1):
                if number > MAX_ROWS:
                    raise DataError(f"{path} has more than {MAX_ROWS:,} rows", "Take a sample of it.")
                yield record
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start})", f"Convert it: iconv -f LATIN1 -t UTF-8 {path} > utf8.csv"
        ) from error
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}", "Is a quotation mark left open?") from error


def _without_repeats(rows: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    """The first of equal texts; none where equal texts have different labels: nobody knows which is true."""
    first: dict[str, Row] = {}
    torn: set[str] = set()
    for row in rows:
        key = text_hash(row.text)
        known = first.setdefault(key, row)
        if known.label != row.label:
            torn.add(key)
    kept = [row for key, row in first.items() if key not in torn]
    ambiguous = sum(text_hash(row.text) in torn for row in rows) if torn else 0
    if ambiguous:
        dropped["same text with different labels"] = ambiguous
    if len(rows) - ambiguous > len(kept):
        dropped["repeated text"] = len(rows) - ambiguous - len(kept)
    return kept
