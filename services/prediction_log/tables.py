"""The lake's Delta tables: their columns, their properties, how they are opened, and the fence before a rewrite.

Statistics go into the Delta log, where no deletion of rows reaches them: only columns without text have any.

Rewriting is fenced because delta-rs (1.6) lets two compactions of the same files both commit, which doubles their
rows; it does not write `app_transactions` with a compaction either. It does refuse every transaction that was begun
before a change of the table's metadata. So who compacts changes a property first (compare-and-swap), and whoever
began earlier, a paused process or another replica, fails instead.
"""

from __future__ import annotations

import os
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from schemas.base import Frozen
from schemas.lake import (
    FEEDBACK,
    FORGOTTEN,
    PREDICTIONS,
    REQUESTS,
    FeedbackRow,
    ForgottenRow,
    PredictionRow,
    RequestRow,
)
from shared.errors import DependencyUnavailable

_TIME = pa.timestamp("us", tz="UTC")
_ARROW = {
    "str": pa.string(), "str | None": pa.string(), "float": pa.float64(), "float | None": pa.float64(),
    "int": pa.int64(), "int | None": pa.int64(), "bool | None": pa.bool_(), "date": pa.date32(), "datetime": _TIME,
}  # fmt: skip
_WITH_STATISTICS = ("prediction_id", "event_id", "occurred_at", "user_hash", "subject_hash")
_MAINTAINED = "ratchet.maintained"
DROPPED = "dropped"
"""Not published: predictions that were not stored, or deleted, because their people are forgotten. What is said of
them later is not stored either. Not partitioned."""
STORE_ERRORS = (DeltaError, OSError)
"""What delta-rs raises when the store is away, or when another writer was first."""


def arrow_schema(row: type[Frozen]) -> pa.Schema:
    """The columns of a row model as an Arrow schema."""
    return pa.schema([pa.field(name, _ARROW[str(field)]) for name, field in row.__annotations__.items()])


SCHEMAS = {
    PREDICTIONS: arrow_schema(PredictionRow),
    FEEDBACK: arrow_schema(FeedbackRow),
    REQUESTS: arrow_schema(RequestRow),
    FORGOTTEN: arrow_schema(ForgottenRow),
}
SCHEMAS[DROPPED] = pa.schema([("task", pa.string()), ("prediction_id", pa.string())])
TablePartition = tuple[str, date]
"""Task and day: what the partitioned tables are partitioned by."""
PARTITIONED = (PREDICTIONS, FEEDBACK, REQUESTS)
"""The tables with a task and a date in their paths; `forgotten` is small and has none."""


def table_properties(table: str) -> dict[str, str]:
    """The Delta properties of a table."""
    return {
        "delta.dataSkippingStatsColumns": ",".join(n for n in SCHEMAS[table].names if n in _WITH_STATISTICS),
        # A removed file is deleted within hours; a longer memory of it only makes the log longer.
        "delta.deletedFileRetentionDuration": "interval 6 hours",
        "delta.logRetentionDuration": "interval 1 days",
        "delta.checkpointInterval": "100",
    }


def storage_options(uri: str) -> dict[str, str] | None:
    """Options of the object store. Address and keys come from the environment, as with every S3 client: `AWS_…`.

    A commit to S3 is a PUT that fails if the version is there (`If-None-Match`): without that two writers could both
    write it. It is delta-rs's default too; said here, so that no environment turns it off. A store that does not
    answer is given up on sooner than by default (three minutes): the caller has its own patience.
    """
    if not uri.startswith(("s3://", "s3a://")):
        return None
    return {"aws_conditional_put": "etag", "retry_timeout": "30s"}


def polars_options(uri: str) -> dict[str, str] | None:
    """The same address and keys as `storage_options`, for Polars, which does not read all of them itself."""
    if storage_options(uri) is None:
        return None
    return {name.lower(): value for name, value in os.environ.items() if name.startswith("AWS_") and value}


def open_table(uri: str, table: str) -> DeltaTable | None:
    """The table as it is now; None before its first row. Raises DependencyUnavailable."""
    try:
        return DeltaTable(f"{uri}/{table}", storage_options=storage_options(uri))
    except TableNotFoundError:
        return None
    except STORE_ERRORS as error:
        raise DependencyUnavailable(f"the lake at {uri}/{table} does not answer: {error}") from error


def create_table(uri: str, table: str) -> DeltaTable:
    """Create the table unless it is there. Raises DependencyUnavailable."""
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
    """A string literal of a Delta predicate: nothing in `text` can end it."""
    return "'" + text.replace("'", "''") + "'"


def maintained_at(delta: DeltaTable) -> datetime | None:
    """When somebody last fenced the table to maintain it."""
    seconds = delta.metadata().configuration.get(_MAINTAINED)
    return None if seconds is None else datetime.fromtimestamp(float(seconds), UTC)


def fence(delta: DeltaTable, now: datetime) -> bool:
    """Say in the table that we maintain it now; False: another was first. `delta` is then as new as the fence.

    Every rewrite that was begun before fails when it commits; appends that were begun before have to start again.
    """
    last = maintained_at(delta)
    if last is not None and now <= last:  # The same text again would change no metadata, and fence nobody.
        now = last + timedelta(milliseconds=1)
    properties = {**table_properties(delta.metadata().name or PREDICTIONS), _MAINTAINED: f"{now.timestamp():.3f}"}
    try:
        delta.alter.set_table_properties(
            properties,
            raise_if_not_exists=False,
            commit_properties=CommitProperties(max_commit_retries=0),
        )
    except STORE_ERRORS:
        return False
    return True
