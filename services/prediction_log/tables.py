"""The lake's Delta tables: their columns, their properties, how they are opened, and the claim before a rewrite.

Statistics go into the Delta log, where no deletion of rows reaches them: only columns without text have any.

A process claims a table before it rewrites files, because delta-rs (1.6) lets two compactions of the same files both
commit, which doubles their rows; it does not write `app_transactions` with a compaction either. But it refuses every
transaction that began before a change of the table's metadata. So a claim changes a property (compare-and-swap), and
the commit of any process that began earlier, paused or on another replica, fails.
"""

from __future__ import annotations

import os
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from schemas.base import Frozen
from schemas.lake import FEEDBACK, PREDICTIONS, REQUESTS, ROWS
from shared.errors import DependencyUnavailable

_TIME = pa.timestamp("us", tz="UTC")
_ARROW_TYPES = {
    "str": pa.string(), "str | None": pa.string(), "float": pa.float64(), "float | None": pa.float64(),
    "int": pa.int64(), "int | None": pa.int64(), "bool": pa.bool_(), "bool | None": pa.bool_(), "date": pa.date32(),
    "datetime": _TIME,
}  # fmt: skip
_STATISTICS_COLUMNS = ("prediction_id", "event_id", "occurred_at", "user_hash", "subject_hash")
_MAINTAINED_PROPERTY = "ratchet.maintained"
DROPPED = "dropped"
"""Tombstones: predictions that were skipped or deleted because their person was erased. Their feedback and requests are
not stored either. Not published, not partitioned."""
STORE_ERRORS = (DeltaError, OSError)
"""Errors of delta-rs when the store is unavailable, or when another writer committed first."""


def arrow_schema(row: type[Frozen]) -> pa.Schema:
    """Return the columns of a row model as an Arrow schema."""
    return pa.schema([pa.field(name, _ARROW_TYPES[str(field)]) for name, field in row.__annotations__.items()])


SCHEMAS = {
    **{table: arrow_schema(row) for table, row in ROWS.items()},
    DROPPED: pa.schema([("task", pa.string()), ("prediction_id", pa.string())]),
}
TablePartition = tuple[str, date]
"""Task and day: what the partitioned tables are partitioned by."""
PARTITIONED = (PREDICTIONS, FEEDBACK, REQUESTS)
"""The tables with a task and a date in their paths; `forgotten` and `dropped` are small and have none."""


def table_properties(table: str) -> dict[str, str]:
    """Return the Delta properties of a table."""
    return {
        "delta.dataSkippingStatsColumns": ",".join(n for n in SCHEMAS[table].names if n in _STATISTICS_COLUMNS),
        # A removed file is deleted within hours; listing it for longer would only make the log longer.
        "delta.deletedFileRetentionDuration": "interval 6 hours",
        "delta.logRetentionDuration": "interval 1 days",
        "delta.checkpointInterval": "100",
    }


def storage_options(uri: str) -> dict[str, str] | None:
    """Return the options of the object store. Address and keys come from the environment, `AWS_…`, as for any client.

    A commit to S3 is a PUT that fails if the version exists (`If-None-Match`): otherwise two writers could both write
    it. That is delta-rs's default too; it is set here so that no environment variable turns it off. The timeout is
    below the default of three minutes, because the callers retry.
    """
    if not uri.startswith(("s3://", "s3a://")):
        return None
    return {"aws_conditional_put": "etag", "retry_timeout": "30s"}


def polars_options(uri: str) -> dict[str, str] | None:
    """Return the address and keys of `storage_options` for Polars, which does not read all of them itself."""
    if storage_options(uri) is None:
        return None
    return {name.lower(): value for name, value in os.environ.items() if name.startswith("AWS_") and value}


def open_table(uri: str, table: str) -> DeltaTable | None:
    """Open the newest version of a table; None if it does not exist yet. Raises DependencyUnavailable."""
    try:
        return DeltaTable(f"{uri}/{table}", storage_options=storage_options(uri))
    except TableNotFoundError:
        return None
    except STORE_ERRORS as error:
        raise DependencyUnavailable(f"the lake at {uri}/{table} is unavailable: {error}") from error


def create_table(uri: str, table: str) -> DeltaTable:
    """Create the table unless it exists. Raises DependencyUnavailable."""
    try:
        return DeltaTable.create(
            f"{uri}/{table}",
            schema=SCHEMAS[table],
            mode="ignore",
            partition_by=["task", "date"] if table in PARTITIONED else None,
            name=table,
            configuration=table_properties(table),
            storage_options=storage_options(uri),
        )
    except STORE_ERRORS as error:
        raise DependencyUnavailable(f"the lake at {uri}/{table} was not created: {error}") from error


def quoted(text: str) -> str:
    """Return a string literal for a Delta predicate: nothing in `text` can end it."""
    return "'" + text.replace("'", "''") + "'"


def maintained_at(delta: DeltaTable) -> datetime | None:
    """Return when a process last claimed the maintenance of the table."""
    seconds = delta.metadata().configuration.get(_MAINTAINED_PROPERTY)
    return None if seconds is None else datetime.fromtimestamp(float(seconds), UTC)


def claim_maintenance(delta: DeltaTable, now: datetime) -> bool:
    """Record in the table that this process maintains it now; return False if another process was first.

    Rewrites that began before the claim fail at their commit; appends that began before it retry. `delta` is updated
    to the version of the claim.
    """
    last = maintained_at(delta)
    if last is not None and now <= last:  # An unchanged property would change no metadata and stop no rewrite.
        now = last + timedelta(milliseconds=1)
    properties = {
        **table_properties(delta.metadata().name or PREDICTIONS),
        _MAINTAINED_PROPERTY: f"{now.timestamp():.3f}",
    }
    try:
        delta.alter.set_table_properties(
            properties,
            raise_if_not_exists=False,
            commit_properties=CommitProperties(max_commit_retries=0),
        )
    except STORE_ERRORS:
        return False
    return True
