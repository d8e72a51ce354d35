"""Reads a JSON lines file of texts with the objects to extract from them, and says what is wrong with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy.demo.data.csv_file import (
    MAX_FILE_BYTES,
    MAX_ROWS,
    MAX_TEXT_CHARS,
    CsvData,
    DataError,
    DataRow,
    without_duplicates,
)
from schemas.output_schema import fields_of
from shared.grading.json_schema import canonical, schema_errors
from shared.grading.json_values import read_json

_FORM = 'Each line is {"text": "what was written", "answer": {…}}; the answer is JSON by the schema.'


def read_objects(path: Path, schema: Mapping[str, Any]) -> CsvData:
    """Read the rows; a row's label is its object in the spelling that is trained on. There are no labels to choose of.

    Drops and counts texts over 2,000 characters, repeated texts, and texts with two different objects. Raises DataError
    with the line and what to change.
    """
    dropped: Counter[str] = Counter()
    return CsvData(tuple(read_lines(path, lambda row: _object(row, schema), _FORM, dropped)), (), dict(dropped))


def read_lines(
    path: Path, label_of: Callable[[Mapping[str, Any]], str], form: str, dropped: Counter[str]
) -> list[DataRow]:
    """Read the rows of a file by its lines, without those that are dropped, which are counted.

    `label_of` returns a row's label, or raises ValueError for one that has none; `form`: what a line must be. Raises
    DataError.
    """
    rows: list[DataRow] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        if len(rows) == MAX_ROWS:
            raise DataError(f"{path} has more than {MAX_ROWS:,} rows", "Take a sample of it.")
        try:
            row = _row(read_json(line), label_of)
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}", form) from error
        if len(row.text) > MAX_TEXT_CHARS:
            dropped[f"text over {MAX_TEXT_CHARS:,} characters"] += 1
        else:
            rows.append(row)
    return without_duplicates(rows, dropped)


def read_schema(path: Path) -> dict[str, Any]:
    """Read the JSON Schema of the objects. Raises DataError for a file that has none that a task may have."""
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        fields_of(schema if isinstance(schema, dict) else {})
    except OSError as error:
        raise DataError(
            f"no schema: {path} cannot be read ({error.strerror})",
            "Write the JSON Schema of the answers there, or name its file with --schema.",
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: {error}", "deploy/tasks/orders.yaml has an example.") from error
    return dict(schema)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"no such file: {path}", "Give --data the path of a JSON lines file.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(
            f"{path} has over {MAX_FILE_BYTES / 1e6:.0f} MB", "Take a sample: the loop uses some hundred rows."
        )
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})", "Convert it with iconv.") from error


def _row(value: object, label_of: Callable[[Mapping[str, Any]], str]) -> DataRow:
    if not isinstance(value, dict) or not isinstance(text := value.get("text"), str) or not text.strip():
        raise ValueError("expected an object with a `text` that is not empty")
    part = value.get("part")
    return DataRow(text.strip(), label_of(value), part if isinstance(part, str) else "")


def _object(row: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "answer" not in row:
        raise ValueError("expected an `answer`")
    if faults := schema_errors(row["answer"], schema):
        raise ValueError(f"`answer` breaks the schema: {'; '.join(faults)}")
    return canonical(row["answer"], schema)
