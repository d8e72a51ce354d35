"""Erasure: a person's rows are deleted from the lake and stay deleted.

1. The request goes into the table `forgotten`. From then on no writer stores rows of that person that are not newer
   than the request (a replay, a late delivery).
2. The ids of their predictions go into the table `dropped` (tombstones): feedback need not name its person.
3. Their rows are deleted. The replaced files are vacuumed by the maintenance.

After a crash all steps are repeated. A writer that read both tables just before step 1 may still append a row just
after step 3: `ErasureSweep` finds it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake

from schemas.lake import FEEDBACK, FORGOTTEN, PREDICTIONS, REQUESTS
from services.prediction_log.erasure.tombstones import add_tombstones
from services.prediction_log.rollups.dirty_hours import COUNTED, deleted
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

_IN_A_PREDICATE = 500
_ATTEMPTS = 20
_PERSON = ["task", "subject_hash"]
_PREDICTION = ["task", "prediction_id"]


@dataclass(frozen=True)
class ErasureRequest:
    """Who is forgotten: what they did in the task at or before `occurred_at`."""

    task: str
    subject_hash: str
    occurred_at: datetime


def erase_subjects(uri: str, people: Sequence[ErasureRequest]) -> None:
    """Remember that these are forgotten, then delete what they left until then. Blocks.

    Raises DependencyUnavailable; call it again until it does not.
    """
    delta = open_table(uri, FORGOTTEN) or create_table(uri, FORGOTTEN)
    rows = pl.DataFrame(pa.Table.from_pylist([asdict(person) for person in people], schema=SCHEMAS[FORGOTTEN]))
    rows = rows.group_by(_PERSON).agg(pl.col("occurred_at").max())
    try:
        known = forgotten(delta).rename({"occurred_at": "until"})
        new = rows.join(known, on=_PERSON, how="left").filter(
            pl.col("until").is_null() | (pl.col("until") < pl.col("occurred_at"))
        )
        if not new.is_empty():
            write_deltalake(delta, new.select(SCHEMAS[FORGOTTEN].names).to_arrow(), mode="append")
    except STORE_ERRORS as error:
        raise DependencyUnavailable(f"the lake did not remember whom to erase_subjects: {error}") from error
    erase(uri, rows)


def forgotten(delta: DeltaTable) -> pl.DataFrame:
    """Who is forgotten: `task`, `subject_hash`, and `occurred_at`, the last time they asked for it."""
    return pl.DataFrame(delta.to_pyarrow_table()).group_by(_PERSON).agg(pl.col("occurred_at").max()).sort(_PERSON)


def erase(uri: str, people: pl.DataFrame) -> None:
    """Delete what these left (columns of `forgotten`). Raises DependencyUnavailable."""
    for (task,), theirs in people.group_by("task"):
        for some in _batches(theirs):
            predictions = _collected(_theirs(_rows(uri, PREDICTIONS), some).select("prediction_id"))
            for ids in _batches(predictions.select(pl.lit(task).alias("task"), "prediction_id")):
                add_tombstones(uri, list(ids.iter_rows()))
                delete_by_prediction(uri, ids)
            persons = [
                f"(user_hash = {quoted(subject)} AND occurred_at <= {quoted(_text(until))})"
                for subject, until in some.select("subject_hash", "occurred_at").iter_rows()
            ]
            for table in (FEEDBACK, REQUESTS, PREDICTIONS):
                _delete_where(uri, table, str(task), _theirs(_rows(uri, table), some), " OR ".join(persons))


def delete_by_prediction(uri: str, predictions: pl.DataFrame) -> None:
    """Delete the feedback and the requests of these predictions: `task`, `prediction_id`. As `erase` otherwise."""
    for (task,), ids in predictions.group_by("task"):
        for some in _batches(ids):
            listed = ", ".join(quoted(name) for name in some["prediction_id"])
            for table in (FEEDBACK, REQUESTS):
                rows = _of(_rows(uri, table), some)
                _delete_where(uri, table, str(task), rows, f"prediction_id IN ({listed})")


def delete(uri: str, table: str, predicate: str, metadata: Mapping[str, str] | None = None) -> None:
    """Delete by predicate, again while other writers are first; `metadata` is for the commit.

    Raises DependencyUnavailable.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        delta = open_table(uri, table)
        if delta is None:
            return
        try:
            delta.delete(predicate, commit_properties=CommitProperties(custom_metadata=dict(metadata or {})))
        except STORE_ERRORS as error:
            if attempt == _ATTEMPTS:
                raise DependencyUnavailable(f"the lake's {table} took no deletion: {error}") from error
            time.sleep(random.uniform(0.0, 0.1))  # noqa: S311 - spreads rivals, no secret
        else:
            return


class ErasureSweep:
    """Finds rows of the forgotten that got in after the deletion. Reads each file once, a few columns of it.

    Memory: the paths of the files that make up the tables now, who is forgotten, and what was dropped.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._clean: dict[str, set[str]] = {}
        self._known: tuple[pl.DataFrame, pl.DataFrame] | None = None

    def run(self) -> bool:
        """Erase what is found; whether anything was. Blocks. Raises DependencyUnavailable."""
        delta, dropped_ids = open_table(self._uri, FORGOTTEN), open_table(self._uri, DROPPED)
        if delta is None:
            return False
        try:
            people = forgotten(delta)
            dropped = pl.DataFrame(schema=_texts(_PREDICTION))
            if dropped_ids is not None:
                dropped = pl.DataFrame(dropped_ids.to_pyarrow_table()).unique().sort(_PREDICTION)
        except STORE_ERRORS as error:
            raise DependencyUnavailable(f"the lake did not say who is forgotten: {error}") from error
        if self._known is None or not (people.equals(self._known[0]) and dropped.equals(self._known[1])):
            self._clean = {}  # What is new there may be in any file.
        now = {table: self._files(table) for table in PARTITIONED}
        late = people.join(pl.concat([self._late(table, now[table], people) for table in PARTITIONED]), on=_PERSON)
        erase(self._uri, late.unique())
        said = pl.concat([self._said(table, now[table], dropped) for table in (FEEDBACK, REQUESTS)]).unique()
        delete_by_prediction(self._uri, said)
        self._clean, self._known = now, (people, dropped)
        return not (late.is_empty() and said.is_empty())

    def _files(self, table: str) -> set[str]:
        delta = open_table(self._uri, table)
        return set(delta.file_uris()) if delta is not None else set()

    def _late(self, table: str, files: set[str], people: pl.DataFrame) -> pl.DataFrame:
        return _collected(_theirs(self._unsearched(table, files), people).select(_PERSON))

    def _said(self, table: str, files: set[str], dropped: pl.DataFrame) -> pl.DataFrame:
        return _collected(_of(self._unsearched(table, files), dropped).select(_PREDICTION))

    def _unsearched(self, table: str, files: set[str]) -> pl.LazyFrame:
        fresh = sorted(files - self._clean.get(table, set()))
        if not fresh:
            return _none(table)
        in_paths = {"task": pl.String(), "date": pl.Date()}
        in_files = {name: kind for name, kind in _none(table).collect_schema().items() if name not in in_paths}
        return pl.scan_parquet(
            fresh, hive_partitioning=True, hive_schema=in_paths, schema=in_files,
            storage_options=polars_options(self._uri), missing_columns="insert", extra_columns="ignore",
        )  # fmt: skip


def _none(table: str) -> pl.LazyFrame:
    return pl.DataFrame(SCHEMAS[table].empty_table()).lazy()


def _rows(uri: str, table: str) -> pl.LazyFrame:
    delta = open_table(uri, table)
    return _none(table) if delta is None else pl.scan_delta(delta, storage_options=polars_options(uri))


def _theirs(rows: pl.LazyFrame, people: pl.DataFrame) -> pl.LazyFrame:
    """The rows that `people` left, until each asked to be forgotten, with `subject_hash`."""
    until = people.lazy().select(*_PERSON, pl.col("occurred_at").alias("until"))
    named = rows.rename({"user_hash": "subject_hash"}).join(until, on=_PERSON)
    return named.filter(pl.col("occurred_at") <= pl.col("until"))


def _of(rows: pl.LazyFrame, predictions: pl.DataFrame) -> pl.LazyFrame:
    return rows.join(predictions.lazy(), on=_PREDICTION, how="semi")


def _collected(rows: pl.LazyFrame) -> pl.DataFrame:
    try:
        return rows.unique().collect(engine="streaming")
    except (*STORE_ERRORS, pl.exceptions.PolarsError) as error:
        raise DependencyUnavailable(f"the lake did not say what the forgotten left: {error}") from error


def _delete_where(uri: str, table: str, task: str, rows: pl.LazyFrame, predicate: str) -> None:
    """Delete `rows`, which are those of the predicate, and say in the commit of which hours they were.

    Day by day: a deletion fails when a rival appends what it might match, and only today has many rivals.
    """
    group = ["task", "task_revision", "variant", "adapter"] if table in COUNTED else ["task"]
    found = _collected(rows.select(pl.col("occurred_at").dt.truncate("1h").alias("hour"), *group))
    for (day,), theirs in found.group_by(pl.col("hour").dt.date()):
        metadata = deleted(theirs) if table in COUNTED else None
        delete(uri, table, f"task = {quoted(task)} AND date = '{day}' AND ({predicate})", metadata)


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _texts(columns: Sequence[str]) -> dict[str, pl.DataType]:
    return {column: pl.String() for column in columns}


def _batches(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    return rows.iter_slices(_IN_A_PREDICATE)
