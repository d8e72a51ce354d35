"""Compacts, checkpoints and vacuums one table at a time.

Every replica runs this. The first one claims the table (`tables.claim_maintenance`); the others see that and skip it.
A vacuum never deletes a file that a writer has written and not committed yet: the frequent one deletes only files that
the Delta log lists as removed; the one that deletes files that no log lists (left by crashes and commit conflicts)
skips anything younger than `orphan_hours`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable

from services.prediction_log.parquet_files import filesystem
from services.prediction_log.rewrites import compacted_bytes, sized_files
from services.prediction_log.tables import STORE_ERRORS, claim_maintenance, maintained_at, open_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaintenancePolicy:
    """When the lake is compacted and vacuumed.

    small_files: of a task's day, from which on they are compacted; small is below half of `target_bytes`, and rows of
    256 MiB uncompressed are the most of a file, so that an erasure can hold them in memory. grace_hours: until a file
    that was replaced is deleted, so that its readers can finish. orphan_hours: until one that no commit names is.
    """

    interval: timedelta
    grace_hours: int
    small_files: int = 30
    target_bytes: int = 128 * 1024**2
    orphan_hours: int = 24


class Compaction:
    """Compacts the tables of the lake at `uri`. All methods block."""

    def __init__(self, uri: str, policy: MaintenancePolicy) -> None:
        self._uri = uri
        self._policy = policy
        self._orphans_deleted_at: dict[str, datetime] = {}
        self._settled: set[tuple[object, ...]] = set()
        """Table, partition and number of small files that together are too large for one."""

    def run(self, table: str, delta: DeltaTable, now: datetime) -> bool:
        """Compact, checkpoint and vacuum one table; return False if another process does, or did within `interval`."""
        last = maintained_at(delta)
        if last is not None and timedelta(0) <= now - last < self._policy.interval * 0.9:
            return False
        if not claim_maintenance(delta, now):
            return False
        failed: Exception | None = None
        try:
            self._compact(table, delta, now.date())
        except STORE_ERRORS as error:  # A damaged file fails in every round, and what was erased must not wait for it.
            failed = error
        try:
            delta = open_table(self._uri, table) or delta
            delta.create_checkpoint()
            delta.cleanup_metadata()
            self._vacuum(table, delta, now)
        except STORE_ERRORS as error:
            failed = failed or error
        if failed is not None:
            # A deletion or another claim was first, or the store is unavailable. Every step is complete or not done.
            level = logging.WARNING if isinstance(failed, OSError) else logging.INFO
            logger.log(level, "maintenance of %s stopped, retrying in the next round: %s", table, failed)
        return failed is None

    def _compact(self, table: str, delta: DeltaTable, today: date) -> None:
        crowded = crowded_partitions(delta, self._policy.target_bytes // 2, self._policy.small_files, today)
        for partition, count in crowded:
            if (found := (table, *partition.values(), count)) in self._settled:
                continue
            files = sized_files(delta, filesystem(self._uri, table), partition)
            done = delta.optimize.compact(
                partition_filters=[(name, "=", value) for name, value in partition.items()] or None,
                target_size=compacted_bytes(files, self._policy.target_bytes),
                max_concurrent_tasks=1,
            )
            if not done["numFilesRemoved"]:
                self._settled.add(found)

    def _vacuum(self, table: str, delta: DeltaTable, now: datetime) -> None:
        """Delete removed files after their readers' grace and, once in `orphan_hours`, orphans of that age."""
        orphan_hours = self._policy.orphan_hours
        delta.vacuum(retention_hours=self._policy.grace_hours, dry_run=False, enforce_retention_duration=False)
        last = self._orphans_deleted_at.get(table, datetime.min.replace(tzinfo=UTC))
        if now - last >= timedelta(hours=orphan_hours):
            delta.vacuum(retention_hours=orphan_hours, dry_run=False, enforce_retention_duration=False, full=True)
            self._orphans_deleted_at[table] = now


def crowded_partitions(
    delta: DeltaTable, small_bytes: int, min_files: int, today: date
) -> list[tuple[dict[str, str], int]]:
    """Return the partitions with at least `min_files` small files, as column → value, and how many each has; {} is an
    unpartitioned table.

    From the second day after a day on two are enough: nothing else would ever put together what is left of it, and what
    reads a table takes longer for each file.
    """
    files = pl.DataFrame(pa.table(delta.get_add_actions(flatten=True)))
    small = files.filter(pl.col("size_bytes") < small_bytes)
    columns = delta.metadata().partition_columns
    if not columns:
        return [({}, small.height)] if small.height >= min_files else []
    keys = [pl.col(f"partition.{name}").cast(pl.String).alias(name) for name in columns]
    counted = small.group_by(keys).agg(pl.len().alias("files"))
    is_over = pl.col("date") < str(today - timedelta(days=1)) if "date" in columns else pl.lit(value=False)
    counted = counted.filter(pl.col("files") >= pl.when(is_over).then(2).otherwise(min_files))
    counted = counted.sort(columns)
    return list(zip(counted.select(columns).iter_rows(named=True), counted["files"].to_list(), strict=True))
