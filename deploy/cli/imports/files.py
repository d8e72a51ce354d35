"""Reads the lines of a labelled file: CSV, JSON lines or Parquet. A line that cannot be read is an error of its own."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from schemas.base import MAX_TEXT
from shared.errors import ConfigurationError

_SEPARATORS = ",;\t"
_JSON_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Line:
    """A line's values by column, or what is wrong with it. `number`: as an editor counts; in Parquet, of the row."""

    number: int
    values: Mapping[str, Any]
    error: str = ""


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines that are not blank. Raises ConfigurationError for a file of another form, OSError."""
    if path.suffix in _JSON_LINES:
        yield from _json_lines(path)
    elif path.suffix in _TABLES:
        yield from _table_lines(path)
    elif path.suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        known = ", ".join((*_TABLES, *_JSON_LINES, ".parquet"))
        raise ConfigurationError(f"{path}: what is in it? Its name ends with none of {known}", "Rename or convert it.")


def _json_lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                values = orjson.loads(text.removeprefix(b"\xef\xbb\xbf"))
            except orjson.JSONDecodeError as error:
                yield Line(number, {}, f"invalid JSON: {error}")
                continue
            is_object = isinstance(values, dict)
            yield Line(number, values if is_object else {}, "" if is_object else "no JSON object")


def _table_lines(path: Path) -> Iterator[Line]:
    """The separator is the one that the header has most of: spreadsheets of many countries write semicolons."""
    csv.field_size_limit(MAX_TEXT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(_SEPARATORS, key=header.count), strict=True)
            columns = [name.strip() for name in next(reader, [])]
            yield from _records(reader, columns)
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
        way_out = f"Convert it: iconv -f {encoding} -t UTF-8 {path} > utf8.csv"
        raise ConfigurationError(f"{path} is not UTF-8 (byte {error.start})", way_out) from error


def _records(reader: Any, columns: Sequence[str]) -> Iterator[Line]:
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # Where the record ends, and the next one begins, is not known any more.
            yield Line(number, {}, f"{error}: is a quotation mark left open? What follows was not read")
            return
        if len(cells) == len(columns):
            yield Line(number, dict(zip(columns, cells, strict=True)))
        elif cells:
            yield Line(number, {}, f"{len(cells)} cells, and the header has {len(columns)}")


def _parquet_rows(path: Path) -> Iterator[Line]:
    import polars as pl

    try:
        with path.open("rb") as file:
            frame = pl.read_parquet(file)
    except pl.exceptions.PolarsError as error:
        raise ConfigurationError(f"{path} cannot be read as Parquet: {error}") from error
    for number, values in enumerate(frame.iter_rows(named=True), start=1):
        yield Line(number, values)
