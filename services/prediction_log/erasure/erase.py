"""Erasure: a person's rows are deleted from the lake and stay deleted.

1. The request goes into the table `forgotten`. From then on no writer stores rows of that person that are not newer
   than the request (a redelivery, a late delivery).
2. The ids of their predictions go into the table `dropped` (tombstones): feedback need not name its person.
3. Their rows are deleted, of predictions those with a tombstone. The replaced files are vacuumed by the maintenance.

After a crash all steps are repeated. A writer that read both tables just before step 1 may still append a row after
step 2: `ErasureSweep` finds it. Deleted in step 3, such a prediction would leave its feedback behind for ever.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import cast

import polars as pl
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake

from schemas.lake import FEEDBACK, FORGOTTEN, PREDICTIONS, REQUESTS
from services.prediction_log.erasure.tombstones import add_tombstones
from services.prediction_log.parquet_files import filesystem, from_microseconds
from services.prediction_log.rewrites import rewrite_spans, sized_files
from services.prediction_log.rollups.dirty_hours import COUNTED_TABLES, deletion_metadata
from services.prediction_log.tables import (
    DROPPED,
    PARTITIONED,
    SCHEMAS,
    STORE_ERRORS,
    create_table,
    open_table,
    polars_options,
    quoted,
)
from shared.errors import DependencyUnavailable

_MAX_PREDICATE_TERMS = 500
_MAX_COMMIT_ATTEMPTS = 20
_PERSON = ["task", "subject_hash"]
_PREDICTION = ["task", "prediction_id"]


@dataclass(frozen=True)
class SubjectErasure:
    """A person of a task, whose rows at or before `occurred_at` are erased."""

    task: str
    subject_hash: str
    occurred_at: datetime


def erase_subjects(uri: str, requests: Sequence[SubjectErasure]) -> None:
    """Store the requests, then delete the rows of these people up to their request. Idempotent. Blocks.

    Raises DependencyUnavailable: call it again until it succeeds.
    """
    delta = open_table(uri, FORGOTTEN) or create_table(uri, FORGOTTEN)
    rows = pl.DataFrame(pa.Table.from_pylist([asdict(request) for request in requests], schema=SCHEMAS[FORGOTTEN]))
    rows = rows.group_by(_PERSON).agg(pl.col("occurred_at").max())
    try:
        stored = stored_requests(delta).rename({"occurred_at": "until"})
        new = rows.join(stored, on=_PERSON, how="left").filter(
            pl.col("until").is_null() | (pl.col("until") < pl.col("occurred_at"))
        )
        if not new.is_empty():
            write_deltalake(delta, new.select(SCHEMAS[FORGOTTEN].names).to_arrow(), mode="append")
    except STORE_ERRORS as error:
        raise DependencyUnavailable(f"the lake did not store the erasure requests: {error}") from error
    delete_people(uri, rows)


def stored_requests(delta: DeltaTable) -> pl.DataFrame:
    """Return all erased people: `task`, `subject_hash`, and `occurred_at`, the time of their last request."""
    return pl.DataFrame(delta.to_pyarrow_table()).group_by(_PERSON).agg(pl.col("occurred_at").max()).sort(_PERSON)


def delete_people(uri: str, people: pl.DataFrame) -> None:
    """Delete the rows of these people (columns of `stored_requests`). Raises DependencyUnavailable."""
    for (task,), of_task in people.group_by("task"):
        for batch in _batches(of_task):
            found = _collected(_rows_of_people(_rows(uri, PREDICTIONS), batch).select("prediction_id"))
            predictions = found.select(pl.lit(task).alias("task"), "prediction_id")
            for ids in _batches(predictions):
                add_tombstones(uri, list(ids.iter_rows()))
                delete_by_prediction(uri, ids)
            terms = " OR ".join(
                f"(user_hash = {quoted(subject)} AND occurred_at <= {quoted(_timestamp(until))})"
                for subject, until in batch.select("subject_hash", "occurred_at").iter_rows()
            )
            for table in (FEEDBACK, REQUESTS):
                _delete_by_day(uri, table, str(task), _rows_of_people(_rows(uri, table), batch), terms)
            for ids in _batches(predictions):
                rows = _rows_of_predictions(_rows_of_people(_rows(uri, PREDICTIONS), batch), ids)
                _delete_by_day(uri, PREDICTIONS, str(task), rows, f"({terms}) AND {_is_one_of(ids)}")


def delete_by_prediction(uri: str, predictions: pl.DataFrame) -> None:
    """Delete the feedback and requests of these predictions (`task`, `prediction_id`). Raises DependencyUnavailable."""
    for (task,), of_task in predictions.group_by("task"):
        for batch in _batches(of_task):
            for table in (FEEDBACK, REQUESTS):
                rows = _rows_of_predictions(_rows(uri, table), batch)
                _delete_by_day(uri, table, str(task), rows, _is_one_of(batch))


def _is_one_of(predictions: pl.DataFrame) -> str:
    return f"prediction_id IN ({', '.join(quoted(prediction_id) for prediction_id in predictions['prediction_id'])})"


def delete(uri: str, table: str, predicate: str, metadata: Mapping[str, str] | None = None) -> None:
    """Delete by predicate, retrying commit conflicts; `metadata` goes into the commit. Raises DependencyUnavailable."""
    for attempt in range(1, _MAX_COMMIT_ATTEMPTS + 1):
        delta = open_table(uri, table)
        if delta is None:
            return
        try:
            delta.delete(predicate, commit_properties=CommitProperties(custom_metadata=dict(metadata or {})))
        except STORE_ERRORS as error:
            if attempt == _MAX_COMMIT_ATTEMPTS:
                raise DependencyUnavailable(f"no rows were deleted from the lake's {table}: {error}") from error
            time.sleep(random.uniform(0.0, 0.1))  # noqa: S311 - spreads the writers, no secret
        else:
            return


class ErasureSweep:
    """Finds rows of erased people that were appended after the deletion. Reads a few columns of each file, once.

    Memory: the paths of the tables' current files, the erased people, and the tombstones.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._clean_files: dict[str, set[str]] = {}
        self._erased: tuple[pl.DataFrame, pl.DataFrame] | None = None

    def run(self) -> bool:
        """Delete such rows; return True if there were any. Blocks. Raises DependencyUnavailable."""
        delta, dropped_delta = open_table(self._uri, FORGOTTEN), open_table(self._uri, DROPPED)
        if delta is None:
            return False
        try:
            people = stored_requests(delta)
            dropped = pl.DataFrame(schema={column: pl.String() for column in _PREDICTION})
            if dropped_delta is not None:
                dropped = pl.DataFrame(dropped_delta.to_pyarrow_table()).unique().sort(_PREDICTION)
        except STORE_ERRORS as error:
            raise DependencyUnavailable(f"the erased people were not read from the lake: {error}") from error
        if self._erased is None or not (people.equals(self._erased[0]) and dropped.equals(self._erased[1])):
            self._clean_files = {}  # Any file may have rows of the newly erased.
        files = {table: self._files(table) for table in PARTITIONED}
        rows = {table: self._unsearched(table, files[table]) for table in PARTITIONED}
        late = pl.concat([_collected(_rows_of_people(rows[table], people).select(_PERSON)) for table in PARTITIONED])
        late_people = people.join(late, on=_PERSON).unique()
        delete_people(self._uri, late_people)
        unnamed = (_rows_of_predictions(rows[table], dropped).select(_PREDICTION) for table in (FEEDBACK, REQUESTS))
        late_predictions = pl.concat([_collected(found) for found in unnamed]).unique()
        delete_by_prediction(self._uri, late_predictions)
        self._clean_files, self._erased = files, (people, dropped)
        return not (late_people.is_empty() and late_predictions.is_empty())

    def _files(self, table: str) -> set[str]:
        delta = open_table(self._uri, table)
        return set(delta.file_uris()) if delta is not None else set()

    def _unsearched(self, table: str, files: set[str]) -> pl.LazyFrame:
        """Return the rows of the files that were not searched yet."""
        unsearched = sorted(files - self._clean_files.get(table, set()))
        if not unsearched:
            return _no_rows(table)
        path_columns = {"task": pl.String(), "date": pl.Date()}
        columns = _no_rows(table).collect_schema().items()
        return pl.scan_parquet(
            unsearched, hive_partitioning=True, hive_schema=path_columns,
            schema={name: kind for name, kind in columns if name not in path_columns},
            storage_options=polars_options(self._uri), missing_columns="insert", extra_columns="ignore",
        )  # fmt: skip


def _no_rows(table: str) -> pl.LazyFrame:
    return pl.DataFrame(SCHEMAS[table].empty_table()).lazy()


def _rows(uri: str, table: str) -> pl.LazyFrame:
    delta = open_table(uri, table)
    return _no_rows(table) if delta is None else pl.scan_delta(delta, storage_options=polars_options(uri))


def _rows_of_people(rows: pl.LazyFrame, people: pl.DataFrame) -> pl.LazyFrame:
    """Return the rows of `people` up to the request of each, with `subject_hash` in place of `user_hash`."""
    until = people.lazy().select(*_PERSON, pl.col("occurred_at").alias("until"))
    named = rows.rename({"user_hash": "subject_hash"}).join(until, on=_PERSON)
    return named.filter(pl.col("occurred_at") <= pl.col("until"))


def _rows_of_predictions(rows: pl.LazyFrame, predictions: pl.DataFrame) -> pl.LazyFrame:
    return rows.join(predictions.lazy(), on=_PREDICTION, how="semi")


def _collected(rows: pl.LazyFrame) -> pl.DataFrame:
    try:
        return rows.unique().collect(engine="streaming")
    except (*STORE_ERRORS, pl.exceptions.PolarsError) as error:
        raise DependencyUnavailable(f"the rows of erased people were not read from the lake: {error}") from error


def _delete_by_day(uri: str, table: str, task: str, rows: pl.LazyFrame, predicate: str) -> None:
    """Delete `rows`, which are those of the predicate, and record in the commit which hours lost rows.

    One commit per day, or more if its rows are large: a deletion conflicts with appends that it might match, and only
    today has many writers.
    """
    is_counted = table in COUNTED_TABLES
    group = ["task", "task_revision", "variant", "adapter"] if is_counted else ["task"]
    hour = pl.col("occurred_at").dt.truncate("1h").alias("hour")
    found = _collected(rows.group_by(hour, *group).agg(pl.col("occurred_at").max().alias("last")))
    for (day,), groups in found.group_by(pl.col("hour").dt.date()):
        metadata = deletion_metadata(groups.drop("last")) if is_counted else None
        # What is appended meanwhile is later, so it cannot match: else a busy task's appends would refuse the deletion.
        until = f"occurred_at <= {quoted(_timestamp(cast(datetime, groups['last'].max())))}"
        for within in _spans_of_day(uri, table, task, str(day)):
            of_day = f"task = {quoted(task)} AND date = '{day}' AND {until}{within}"
            delete(uri, table, f"{of_day} AND ({predicate})", metadata)


def _spans_of_day(uri: str, table: str, task: str, day: str) -> list[str]:
    """Return conditions that together select a whole day, and each no more than can be rewritten at once."""
    delta = open_table(uri, table)
    try:
        files = sized_files(delta, filesystem(uri, table), {"task": task, "date": day}) if delta else []
    except STORE_ERRORS as error:
        raise DependencyUnavailable(f"the files of the lake's {table} were not read: {error}") from error
    return [
        (f" AND occurred_at >= {quoted(_timestamp(from_microseconds(first)))}" if first is not None else "")
        + (f" AND occurred_at < {quoted(_timestamp(from_microseconds(after)))}" if after is not None else "")
        for first, after in rewrite_spans(files)
    ]


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _batches(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    return rows.iter_slices(_MAX_PREDICATE_TERMS)
