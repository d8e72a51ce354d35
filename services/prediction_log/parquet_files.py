"""Writes a Delta table's Parquet files before their commit, and reads them a few columns at a time.

The files are not written by delta-rs' `write_deltalake`: a writer whose commit conflicted must be able to commit the
same files again, and it costs a third less. A file is invisible until a commit names it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction
from numpy.typing import NDArray
from pyarrow.fs import FileSystem, PyFileSystem

from services.prediction_log.tables import STORE_ERRORS, TablePartition, storage_options

SCAN_ERRORS = (*STORE_ERRORS, pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""Errors of Polars when it reads a table. It panics where a file is shorter than the table says, which is no Exception:
whatever goes on after each of those would end."""
_DICTIONARY_COLUMNS = {
    "task_revision", "api", "parameters", "answer", "finish_reason", "model", "adapter", "variant", "calibration",
    "app", "metadata", "gateway_version", "kind", "status",
}  # fmt: skip
ROW_GROUP_BYTES = 32 * 1024 * 1024
"""Texts in a row group: readers hold a whole one in memory."""
_TIME = pa.timestamp("us", tz="UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MAX_TIME = np.iinfo(np.int64).max
STATISTICS_ERROR_MICROSECONDS = 1_000
"""The Delta log truncates times to milliseconds: a file's newest row may be this much later than its statistics."""


def microseconds(time: datetime) -> int:
    """Return the microseconds since 1970, UTC."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_microseconds(time: int) -> datetime:
    """Return the time of `microseconds`."""
    return _EPOCH + timedelta(microseconds=time)


@contextmanager
def damage_as_os_error(path: str) -> Iterator[None]:
    """Raise OSError where a file is not whole: to Arrow it is a wrong value, like one of a record.

    After a power cut a file may be shorter than it was, or empty. That is no fault of what is being stored.
    """
    try:
        yield
    except pa.ArrowInvalid as error:
        raise OSError(f"{path} is damaged: {error}") from error


@dataclass(frozen=True)
class DataFile:
    """One file of a table. No row occurred before `oldest` or after `newest` (µs); unknown times are extreme."""

    path: str
    partition: TablePartition
    rows: int
    oldest: int
    newest: int


def filesystem(uri: str, table: str) -> FileSystem:
    """Return the table's folder, local or remote. A file written there becomes visible only when it is complete."""
    return PyFileSystem(_StorageHandler(f"{uri}/{table}", storage_options(uri)))


class _StorageHandler(DeltaStorageHandler):  # type: ignore[misc]  # deltalake is untyped
    """delta-rs' access to the store. Its streams accept only `bytes`, and Arrow passes buffers."""

    def open_output_stream(self, path: str, metadata: dict[str, str] | None = None) -> pa.PythonFile:
        return pa.PythonFile(_BufferStream(self._handler.open_output_stream(path, metadata)), mode="w")


class _BufferStream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, data: Any) -> int:
        return int(self._stream.write(bytes(data)))


def data_files(delta: DeltaTable) -> list[DataFile]:
    """Return the files that make up the table."""
    actions = pa.table(delta.get_add_actions(flatten=True))

    def column(name: str) -> list[object]:
        return list(actions[name].to_pylist()) if name in actions.column_names else [None] * actions.num_rows

    columns = [column(f"partition.{name}") for name in ("task", "date")]
    rows = zip(
        column("path"), *columns, column("num_records"), column("min.occurred_at"), column("max.occurred_at"),
        strict=True,
    )  # fmt: skip
    return [_data_file(*row) for row in rows]


def _data_file(
    path: str, task: str, day: date, rows: int | None, oldest: datetime | None, newest: datetime | None
) -> DataFile:
    return DataFile(
        path, (task, day), rows or 0,
        -_MAX_TIME if oldest is None else microseconds(oldest),
        _MAX_TIME if newest is None else microseconds(newest) + STATISTICS_ERROR_MICROSECONDS,
    )  # fmt: skip


def data_file_of(action: AddAction) -> DataFile:
    """Return the file that `write_files` wrote for this action."""
    statistics = json.loads(action.stats)
    times = (datetime.fromisoformat(statistics[name]["occurred_at"]) for name in ("minValues", "maxValues"))
    task, day = action.partition_values["task"], action.partition_values["date"]
    return _data_file(action.path, str(task), date.fromisoformat(str(day)), statistics["numRecords"], *times)


def read_columns(
    file: DataFile, fs: FileSystem, columns: Sequence[str], first: int, last: int
) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows that occurred within [first, last] (µs): these text columns and `occurred_at`.

    Some 100,000 rows at a time. Raises OSError, also for a file that is damaged.
    """
    # The types are explicit because files rewritten by delta-rs declare string views, which Arrow cannot filter.
    schema = pa.schema([*((name, pa.string()) for name in columns), ("occurred_at", _TIME)])
    within = (ds.field("occurred_at") >= _instant(first)) & (ds.field("occurred_at") <= _instant(last))
    batches = ds.dataset(file.path, schema=schema, format="parquet", filesystem=fs).to_batches(filter=within)
    with damage_as_os_error(file.path):
        yield from (batch for batch in batches if batch.num_rows)


def read_table(delta: DeltaTable) -> pa.Table:
    """Return all rows of a small table. Raises delta-rs' errors and OSError, also for a file that is damaged."""
    with damage_as_os_error(delta.table_uri):
        return delta.to_pyarrow_table()


def _instant(time: int) -> pa.Scalar:
    return pa.scalar(time, pa.int64()).cast(_TIME)


def write_files(rows: pa.Table, fs: FileSystem) -> list[AddAction]:
    """Write a file for each task and day; return the actions that a commit adds them with."""
    return [_write_file(part, partition, fs) for partition, part in split_by_partition(rows)]


def delete_files(actions: Iterable[AddAction], fs: FileSystem) -> None:
    """Delete files that `write_files` wrote."""
    for action in actions:
        fs.delete_file(action.path)


def split_by_partition(rows: pa.Table) -> list[tuple[TablePartition, pa.Table]]:
    """Return the rows of each task and day."""
    if not rows.num_rows:
        return []
    tasks, days = rows["task"].combine_chunks(), rows["date"].combine_chunks()
    first: TablePartition = (tasks[0].as_py(), days[0].as_py())
    if pc.all(pc.and_(pc.equal(tasks, tasks[0]), pc.equal(days, days[0]))).as_py():
        return [(first, rows)]
    groups: dict[TablePartition, list[int]] = {}
    for number, partition in enumerate(zip(tasks.to_pylist(), days.to_pylist(), strict=True)):
        groups.setdefault(partition, []).append(number)
    return [(partition, rows.take(pa.array(numbers))) for partition, numbers in groups.items()]


def time_range(rows: pa.Table) -> tuple[int, int]:
    """Return when the first and the last of the rows occurred (µs)."""
    times = rows["occurred_at"].cast(pa.int64())
    bounds = pc.min_max(times)
    return bounds["min"].as_py(), bounds["max"].as_py()


def _write_file(rows: pa.Table, partition: TablePartition, fs: FileSystem) -> AddAction:
    task, day = partition
    body = rows.drop_columns(["task", "date"])
    repeated = {field.name for field in body.schema if pa.types.is_dictionary(field.type)}
    buffer = pa.BufferOutputStream()
    writer = pq.ParquetWriter(
        buffer, body.schema, compression="zstd", compression_level=1, write_statistics=["occurred_at"],
        use_dictionary=sorted(_DICTIONARY_COLUMNS & {*body.column_names} | repeated),
        store_schema=False,  # It would have dictionaries; the columns are strings.
    )  # fmt: skip
    with writer:
        for group in _row_groups(body):
            writer.write_table(group, row_group_size=group.num_rows)
    data = buffer.getvalue()
    path = f"task={task}/date={day.isoformat()}/{uuid4()}.zstd.parquet"
    with fs.open_output_stream(path) as stream:
        stream.write(data)
    values = {"task": task, "date": day.isoformat()}
    return AddAction(path, data.size, values, int(time.time() * 1000), True, _statistics(rows))


def _row_groups(rows: pa.Table) -> Iterator[pa.Table]:
    """Split rows into slices with at most ROW_GROUP_BYTES of texts, or one row."""
    if rows.nbytes <= ROW_GROUP_BYTES and not any(pa.types.is_dictionary(kind) for kind in rows.schema.types):
        yield rows
        return
    ends = np.cumsum(sum(_lengths(column) for column in rows.columns))
    start = 0
    while start < rows.num_rows:
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + ROW_GROUP_BYTES, side="right")))
        yield _with_own_dictionaries(rows.slice(start, end - start))
        start = end


def _lengths(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the bytes of each text; zeros for another column."""
    if pa.types.is_dictionary(column.type):
        values = column.combine_chunks()
        lengths = pc.binary_length(values.dictionary).take(values.indices)
    elif pa.types.is_string(column.type):
        lengths = pc.binary_length(column)
    else:
        return np.zeros(len(column), np.int64)
    return np.asarray(lengths.fill_null(0), np.int64)


def _with_own_dictionaries(rows: pa.Table) -> pa.Table:
    """Drop texts from dictionaries that none of the rows has: they are other tasks', and those of erased people."""
    for number, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            values = rows.column(number).combine_chunks()
            used = values.indices.drop_null().unique()
            indices = pc.index_in(values.indices, value_set=used)
            own = pa.DictionaryArray.from_arrays(indices, values.dictionary.take(used))
            rows = rows.set_column(number, field, own)
    return rows


def _statistics(rows: pa.Table) -> str:
    first, last = map(from_microseconds, time_range(rows))
    return json.dumps(
        {
            "numRecords": rows.num_rows,
            "minValues": {"occurred_at": first.isoformat(timespec="milliseconds")},
            # Rounded up: a reader that relies on it must not skip the last row.
            "maxValues": {"occurred_at": (last + _MILLISECOND).isoformat(timespec="milliseconds")},
            "nullCount": {"occurred_at": 0},
        }
    )
