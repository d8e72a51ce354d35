"""Reads the lake's tables, as any reader of the published contract does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

Key = tuple[str, int]
"""A request's marker and an answer's number."""


def read_rows(lake: Path, table: str, tasks: Sequence[str], columns: list[str] | None = None) -> pa.Table:
    """Return the rows of the tasks; none if the table does not exist yet."""
    try:
        delta = DeltaTable(str(lake / table))
    except TableNotFoundError:
        return pa.table({name: pa.array([], pa.string()) for name in columns or []})
    return delta.to_pyarrow_table(columns=columns, filters=[("task", "in", list(tasks))])


def stored_ids(lake: Path, table: str, tasks: Sequence[str]) -> set[str]:
    """Return the distinct prediction ids in a table."""
    return set(read_rows(lake, table, tasks, ["prediction_id"]).column("prediction_id").to_pylist())


def ids_by_key(lake: Path, tasks: Sequence[str]) -> dict[Key, str]:
    """Return the prediction id of each stored answer."""
    rows = read_rows(lake, "predictions", tasks, ["metadata", "answer_number", "prediction_id"])
    columns = (rows[name].to_pylist() for name in ("metadata", "answer_number", "prediction_id"))
    return {
        (marker_of(metadata), number): prediction_id for metadata, number, prediction_id in zip(*columns, strict=True)
    }


def marker_of(metadata: str) -> str:
    """The marker in a row's metadata; empty without one."""
    found = json.loads(metadata).get("marker")
    return found if isinstance(found, str) else ""


def rows_hash(lake: Path, table: str, tasks: Sequence[str], key: str) -> str:
    """Return the SHA-256 (hex) of a table's rows, all columns, in the order of `key`."""
    rows = read_rows(lake, table, tasks)
    if not rows.num_rows:
        return hashlib.sha256(b"").hexdigest()
    rows = rows.select(sorted(rows.column_names)).sort_by(key).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema.remove_metadata()) as writer:
        for batch in rows.replace_schema_metadata(None).to_batches(max_chunksize=65_536):
            writer.write_batch(_compact(batch))
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a copy of the batch: a slice would be written with the whole buffer that it belongs to."""
    return pa.RecordBatch.from_arrays([pa.concat_arrays([column]) for column in batch.columns], schema=batch.schema)
