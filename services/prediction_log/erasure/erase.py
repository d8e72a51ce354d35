"""Erasure: a person's rows are deleted from the lake and stay deleted.

1. The request goes into the table `forgotten`. From then on no writer stores rows of that person that are not newer
   than the request (a redelivery, a late delivery).
2. The ids of their predictions go into the table `dropped` (tombstones): feedback need not name its person.
3. Their rows are deleted, day by day, of predictions those with a tombstone. The replaced files are vacuumed by the
   maintenance.

After a crash all steps are repeated. A writer that read both tables just before step 1 may still append a row after
step 2: `ErasureSweep` finds it. Deleted in step 3, such a prediction would leave its feedback behind for ever.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

import polars as pl
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake

from schemas.lake import FEEDBACK, FORGOTTEN, PREDICTIONS, REQUESTS
from services.prediction_log.erasure.tombstones import add_tombstones
from services.prediction_log.parquet_files import SCAN_ERRORS, STATISTICS_ERROR_MICROSECONDS, filesystem, read_table
from services.prediction_log.rewrites import Span, rewrite_spans, sized_files
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
_STATISTICS_ERROR = timedelta(microseconds=STATISTICS_ERROR_MICROSECONDS)
_NEVER = 2**62
"""Microseconds since 1970, and before it."""
_PERSON = ["task", "subject_hash"]
_PREDICTION = ["task", "prediction_id"]
_COUNTED_BY = ["task", "task_revision", "variant", "adapter"]


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
    return pl.DataFrame(read_table(delta)).group_by(_PERSON).agg(pl.col("occurred_at").max()).sort(_PERSON)


def delete_people(uri: str, people: pl.DataFrame) -> None:
    """Delete the rows of these people (columns of `stored_requests`). Raises DependencyUnavailable."""
    for (name,), of_task in people.group_by("task"):
        task = str(name)
        for batch in _batches(of_task):
            predictions = _found_of_people(uri, PREDICTIONS, task, batch)
            ids = predictions.select("task", "prediction_id").unique(maintain_order=True)
            if not ids.is_empty():
                add_tombstones(uri, list(ids.iter_rows()))
            delete_by_prediction(uri, ids)
            terms = " OR ".join(
                f"(user_hash = {quoted(subject)} AND occurred_at <= {quoted(_timestamp(until))})"
                for subject, until in batch.select("subject_hash", "occurred_at").iter_rows()
            )
            for table in (FEEDBACK, REQUESTS):
                _delete_by_day(uri, table, task, _found_of_people(uri, table, task, batch), terms)
            _delete_by_day(uri, PREDICTIONS, task, predictions, terms, by_id=True)


def delete_by_prediction(uri: str, predictions: pl.DataFrame) -> None:
    """Delete the feedback and requests of these predictions (`task`, `prediction_id`). Raises DependencyUnavailable."""
    for (task,), of_task in predictions.group_by("task"):
        for table in (FEEDBACK, REQUESTS):
            found = _found(table, _rows_of_predictions(_rows(uri, table, str(task)), of_task))
            _delete_by_day(uri, table, str(task), found, by_id=True)


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
                dropped = pl.DataFrame(read_table(dropped_delta)).unique().sort(_PREDICTION)
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


def _rows(uri: str, table: str, task: str) -> pl.LazyFrame:
    delta = open_table(uri, table)
    rows = _no_rows(table) if delta is None else pl.scan_delta(delta, storage_options=polars_options(uri))
    return rows.filter(pl.col("task") == task)


def _found_of_people(uri: str, table: str, task: str, people: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of people of the task, as `_found` does. Reads no file of a day after their requests."""
    rows = _rows(uri, table, task).filter(pl.col("date") <= people["occurred_at"].dt.date().max())
    return _found(table, _rows_of_people(rows, people))


def _found(table: str, rows: pl.LazyFrame) -> pl.DataFrame:
    """Return what a deletion must know of rows, in the order of their times: those of an hour lie in few files."""
    columns = ["occurred_at", "prediction_id", *(_COUNTED_BY if table in COUNTED_TABLES else ["task"])]
    return _collected(rows.select(columns)).sort("occurred_at", "prediction_id")


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
    except SCAN_ERRORS as error:
        raise DependencyUnavailable(f"the rows of erased people were not read from the lake: {error}") from error


def _delete_by_day(
    uri: str, table: str, task: str, rows: pl.DataFrame, predicate: str = "", *, by_id: bool = False
) -> None:
    """Delete `rows` (of `_found`), and record in the commits which hours lost rows.

    They are those of the predicate, or, `by_id`, those of them with these ids. One commit per day, or more if its rows
    are large or the ids many: a deletion conflicts with appends that it might match, and only today has many writers.
    """
    hour = pl.col("occurred_at").dt.truncate("1h").alias("hour")
    for (day,), of_day in rows.group_by(pl.col("occurred_at").dt.date(), maintain_order=True):
        for span in _spans_of_day(uri, table, task, str(day)):
            in_span = of_day.filter(_is_within(span))
            for part in in_span.iter_slices(_MAX_PREDICATE_TERMS if by_id else rows.height):
                # Not from the first row on: by its statistics the file that it is the last of may end before it.
                first, last = part["occurred_at"][0] - _STATISTICS_ERROR, part["occurred_at"][-1]
                conditions = [
                    f"task = {quoted(task)} AND date = '{day}'",
                    f"occurred_at >= {quoted(_timestamp(first))}",
                    # What is appended meanwhile is later: else a busy task's appends would refuse the deletion.
                    f"occurred_at <= {quoted(_timestamp(last))}",
                    *([f"({predicate})"] if predicate else []),
                    *([_is_one_of(part)] if by_id else []),
                ]
                metadata = deletion_metadata(part.select(hour, *_COUNTED_BY)) if table in COUNTED_TABLES else None
                delete(uri, table, " AND ".join(conditions), metadata)


def _is_one_of(rows: pl.DataFrame) -> str:
    ids = rows["prediction_id"].unique(maintain_order=True)
    return f"prediction_id IN ({', '.join(map(quoted, ids))})"


def _is_within(span: Span) -> pl.Expr:
    first, after = span
    time = pl.col("occurred_at").dt.epoch("us")
    return time.is_between(-_NEVER if first is None else first, _NEVER if after is None else after, closed="left")


def _spans_of_day(uri: str, table: str, task: str, day: str) -> list[Span]:
    """Return spans that together are a whole day, and whose rows are each no more than can be rewritten at once."""
    delta = open_table(uri, table)
    try:
        files = sized_files(delta, filesystem(uri, table), {"task": task, "date": day}) if delta else []
    except STORE_ERRORS as error:
        raise DependencyUnavailable(f"the files of the lake's {table} were not read: {error}") from error
    return list(rewrite_spans(files))


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _batches(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    return rows.iter_slices(_MAX_PREDICATE_TERMS)
