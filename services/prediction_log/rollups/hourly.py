"""Counts the predictions and requests of an hour, with Polars.

An hour is counted again from the table whenever it changed. Only the needed columns of that hour are read, by streaming
group-bys whose results are buckets and 64-bit hashes: memory grows with the distinct answers of an hour, not with the
table.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from schemas.base import Variant
from schemas.lake import PREDICTIONS, REQUESTS
from schemas.predictions import LabelCount, LatencySketch, PredictionsRolledUp, sketch_quantile
from services.prediction_log.parquet_files import SCAN_ERRORS
from services.prediction_log.rollups.dirty_hours import HOUR, DirtyHours, TaskHour
from services.prediction_log.tables import open_table, polars_options
from shared.errors import DependencyUnavailable
from shared.identity import content_hash, event_id

MAX_ANSWERS = 100
"""Distinct answers in a roll-up; a generation task has as many answers as predictions."""
MAX_ANSWER = 300
"""Characters of an answer in a roll-up: a generated one may have megabytes. Equal beginnings are counted as one."""
_GAMMA = float(LatencySketch.model_fields["gamma"].default)
_MIN_SKETCH_MS, _MAX_SKETCH_MS = 1e-6, 1e12
"""The range of latencies that a sketch tells apart, in at most 1,060 buckets."""
_GROUP_COLUMNS = ("task", "task_revision", "variant", "adapter")
_SERVER_ERROR = 500
_LAST_OF_HOUR = HOUR - timedelta(microseconds=1)
"""Times of the lake are whole microseconds. The beginning of the next hour may be behind the end of time."""


class RollUps:
    """The hourly roll-ups of the lake at `uri`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._dirty = DirtyHours(self._uri)

    def pending(self) -> list[TaskHour]:
        """Return the hours that changed since they were published. Blocks. Raises DependencyUnavailable."""
        return self._dirty.pending()

    def published(self, hour: TaskHour) -> None:
        """Record that the hour's events are published."""
        self._dirty.published(hour)

    def put_off(self, hour: TaskHour) -> None:
        """Record that the hour could not be counted: it is the last of the pending ones from now on."""
        self._dirty.put_off(hour)

    def count(self, hour: TaskHour, now: datetime) -> list[PredictionsRolledUp]:
        """Return an event per revision, variant and adapter of the hour, with count 0 if its last row was deleted.

        Blocks. Raises DependencyUnavailable.
        """
        try:
            return self._count(hour, now)
        except SCAN_ERRORS as error:
            # A file may have been vacuumed after the table's log was read; the next attempt reads a newer log.
            raise DependencyUnavailable(f"the lake's hour {hour.start:%Y-%m-%d %H} was not counted: {error}") from error

    def _count(self, hour: TaskHour, now: datetime) -> list[PredictionsRolledUp]:
        predictions, requests = self._rows(PREDICTIONS, hour), self._rows(REQUESTS, hour)
        latency = _frame(predictions, latency_counts)
        confidence = _groups(_frame(predictions, confidence_counts), "bin")
        answers = _groups(_frame(predictions, most_frequent), "answer")
        counted = _frame(requests, request_counts)
        observed = {_group(row): (row["requests"], row["errors"]) for row in counted.iter_rows(named=True)}
        buckets = _groups(latency, "bucket")
        keys = sorted({*buckets, *observed, *self._dirty.groups_with_deletions(hour)}, key=str)
        return [
            _event(
                dict(zip(_GROUP_COLUMNS, key, strict=True)), hour, now,
                buckets.get(key, []), confidence.get(key, []), answers.get(key, []), observed.get(key, (0, 0)),
            )
            for key in keys
        ]  # fmt: skip

    def _rows(self, table: str, hour: TaskHour) -> pl.LazyFrame | None:
        delta = open_table(self._uri, table)
        if delta is None:
            return None
        return pl.scan_delta(delta, storage_options=polars_options(self._uri)).filter(
            pl.col("task") == hour.task,
            pl.col("date") == hour.start.date(),
            pl.col("occurred_at") >= hour.start,
            pl.col("occurred_at") <= hour.start + _LAST_OF_HOUR,
        )


def latency_counts(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Count the rows per group and bucket of the latency sketch; the bucket is null for 0 ms."""
    clipped = pl.col("latency_ms").clip(_MIN_SKETCH_MS, _MAX_SKETCH_MS)
    bucket = pl.when(pl.col("latency_ms") > 0.0).then((clipped.log() / math.log(_GAMMA)).ceil().cast(pl.Int64))
    return rows.group_by(*_GROUP_COLUMNS, bucket.alias("bucket")).agg(pl.len().alias("count"))


def confidence_counts(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Count the rows per group and tenth of confidence; 1.0 is in the last."""
    tenth = (pl.col("confidence") * 10).floor().clip(0, 9).cast(pl.Int64)
    measured = rows.filter(pl.col("confidence").is_finite())
    return measured.group_by(*_GROUP_COLUMNS, tenth.alias("bin")).agg(pl.len().alias("count"))


def most_frequent(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Return the most frequent answers per group, most frequent first; the hash breaks ties, so they are repeatable.

    Long ones are cut to MAX_ANSWER characters. The hashes of what is left are counted first; then only the texts of the
    most frequent ones are read.
    """
    answer = pl.col("answer")
    cut = pl.when(answer.str.len_chars() > MAX_ANSWER).then(answer.str.head(MAX_ANSWER - 1) + "…").otherwise(answer)
    hashed = rows.with_columns(cut.alias("answer")).with_columns(answer.hash(seed=0).alias("hash"))
    counts = hashed.group_by(*_GROUP_COLUMNS, "hash").agg(pl.len().alias("count"))
    ranked = counts.sort("count", "hash", descending=[True, False]).group_by(*_GROUP_COLUMNS, maintain_order=True)
    top = ranked.head(MAX_ANSWERS).collect(engine="streaming")
    wanted = top.lazy().select("hash").unique()
    texts = hashed.join(wanted, on="hash", how="semi").group_by("hash").agg(pl.col("answer").first())
    return (
        top.lazy().join(texts, on="hash", how="left", maintain_order="left").select(*_GROUP_COLUMNS, "answer", "count")
    )


def request_counts(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Count the requests per group, and those of them that failed."""
    failed = (pl.col("status") >= _SERVER_ERROR).sum()
    return rows.group_by(*_GROUP_COLUMNS).agg(pl.len().alias("requests"), failed.alias("errors"))


def _frame(rows: pl.LazyFrame | None, query: Any) -> pl.DataFrame:
    return pl.DataFrame() if rows is None else query(rows).collect(engine="streaming")


def _group(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _GROUP_COLUMNS)


def _groups(frame: pl.DataFrame, value: str) -> dict[tuple[Any, ...], list[tuple[Any, int]]]:
    """Return each group's (value, count) pairs, in the frame's order."""
    groups: dict[tuple[Any, ...], list[tuple[Any, int]]] = {}
    for row in frame.iter_rows(named=True):
        groups.setdefault(_group(row), []).append((row[value], row["count"]))
    return groups


def _event(
    key: dict[str, Any],
    hour: TaskHour,
    now: datetime,
    buckets: list[tuple[int | None, int]],
    confidence: list[tuple[int, int]],
    answers: list[tuple[str, int]],
    observed: tuple[int, int],
) -> PredictionsRolledUp:
    histogram = [0] * 10
    for tenth, count in confidence:
        histogram[tenth] = count
    sketch = _sketch(buckets)
    requests, errors = observed
    fields: dict[str, Any] = {
        "task": key["task"],
        "task_revision": key["task_revision"],
        "hour": hour.start,
        "variant": Variant(key["variant"]),
        "adapter": key["adapter"],
        "predictions": sum(count for _, count in buckets),
        "answers": tuple(LabelCount(answer=answer, count=count) for answer, count in answers),
        "confidence_histogram": tuple(histogram),
        "latency_ms_p50": sketch_quantile(sketch, 0.5),
        "latency_ms_p95": sketch_quantile(sketch, 0.95),
        "latency": sketch,
        "requests": requests,
        "errors": errors,
    }
    # An hour that is published again with the same counts is the same event.
    counts = content_hash(repr(sorted(fields.items())), length=32)
    return PredictionsRolledUp(event_id=event_id("rolled_up", counts), occurred_at=now, **fields)


def _sketch(buckets: list[tuple[int | None, int]]) -> LatencySketch:
    counted = sorted((bucket, count) for bucket, count in buckets if bucket is not None)
    return LatencySketch(
        zeros=sum(count for bucket, count in buckets if bucket is None),
        indexes=tuple(bucket for bucket, _ in counted),
        counts=tuple(count for _, count in counted),
    )
