"""Appends to the lake's tables, exactly once. This service alone writes them; `schemas/lake.py` is their contract.

Exactly once takes three steps. **Offsets**: the last offset of each partition is committed in the same Delta
transaction as the rows (`app_transactions`), and records at or below it are skipped. **Compare-and-swap**: a commit
succeeds only on the table version that these offsets were read from (delta-rs: `max_commit_retries=0`); a writer whose
commit conflicts, such as a zombie after a rebalance, reads again and skips what the other one stored. **Ids**: an event
that reached Kafka twice has two offsets and one id; the table stores it once, whoever stored it first.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Schema
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction
from numpy.typing import NDArray

from schemas.lake import PREDICTIONS
from services.prediction_log.arrow_columns import ID_COLUMN, to_arrow
from services.prediction_log.deduplication.duplicates import DuplicateFinder
from services.prediction_log.domain import new_deliveries
from services.prediction_log.erasure.tombstones import Tombstones
from services.prediction_log.offsets.commit_offsets import CommitOffsets
from services.prediction_log.parquet_files import data_file_of, delete_files, filesystem, write_files
from services.prediction_log.tables import PARTITIONED, SCHEMAS, STORE_ERRORS, create_table, open_table
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import Delivery, TopicPartition

MAX_COMMIT_ATTEMPTS = 20
"""Commit conflicts in one call before the records are redelivered."""
logger = logging.getLogger(__name__)


class _CommitConflict(Exception):
    """Another writer committed first."""


@dataclass
class _TableState:
    """What this process knows of one table as of `version`."""

    delta: DeltaTable
    duplicates: DuplicateFinder
    version: int = -1
    committed: dict[TopicPartition, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Batch:
    """Rows to append, the offsets committed with them, and the rows skipped because their person was erased."""

    rows: pa.Table
    offsets: Mapping[TopicPartition, int]
    erased: pa.Table


@dataclass(frozen=True)
class _WrittenFiles:
    rows: pa.Table
    actions: list[AddAction]


class DeltaLake:
    """Delta tables below a folder or an s3:// URI, partitioned by task and date. Safe to use from several threads."""

    def __init__(self, uri: str, incarnation: str = "", window: int = 1_000_000) -> None:
        self._uri = uri.rstrip("/")
        self._offsets = CommitOffsets(incarnation)
        self._window = window
        self._states: dict[str, _TableState] = {}
        self._locks = {table: threading.Lock() for table in PARTITIONED}
        self._tombstones = Tombstones(self._uri)
        if "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)

    def append(self, table: str, deliveries: Sequence[Delivery[Any]]) -> int:
        """Append the deliveries' events (shared/kafka/decoding.py) that are not stored yet; return the number of rows.

        Skipped records (a redelivery, a duplicate, an erased person's) move the committed offset all the same. Raises
        DependencyUnavailable when the store is unavailable or every commit conflicts: redeliver.
        """
        written: _WrittenFiles | None = None
        with self._locks[table]:
            for attempt in range(MAX_COMMIT_ATTEMPTS):
                try:
                    state = self._updated_state(table)
                    batch = self._select(table, state, deliveries)
                    if batch is None:
                        return 0
                    if written is None or not written.rows.equals(batch.rows):
                        if written is not None:
                            self._delete(table, written)
                        written = _WrittenFiles(batch.rows, write_files(batch.rows, filesystem(self._uri, table)))
                    self._commit(table, state, batch, written)
                    return self._record_commit(state, batch, written)
                except _CommitConflict:
                    time.sleep(random.uniform(0.0, 0.02) * attempt)  # noqa: S311 - spreads the writers, no secret
                except STORE_ERRORS as error:
                    # The commit may have succeeded. Reading the table again finds out, so a second commit is harmless.
                    self._states.pop(table, None)
                    raise DependencyUnavailable(
                        f"it is not known whether rows were appended to {self._uri}/{table}: {error}",
                        "Check its folder or object store.",
                    ) from error
        raise DependencyUnavailable(f"{MAX_COMMIT_ATTEMPTS} commits to {self._uri}/{table} conflicted with others")

    def stored_offsets(self, table: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return the last stored offset of each partition that the table has records of."""
        with self._locks[table]:
            try:
                state = self._updated_state(table)
                offsets = {partition: self._committed(state, partition) for partition in partitions}
            except STORE_ERRORS as error:
                self._states.pop(table, None)
                raise DependencyUnavailable(f"the lake at {self._uri}/{table} is unavailable: {error}") from error
        return {partition: offset for partition, offset in offsets.items() if offset >= 0}

    def accept_topic(self, table: str, topic: str, topic_id: UUID) -> bool:
        """Return False if the table was filled from a topic with another broker id; else commit this id from now on."""
        with self._locks[table]:
            try:
                return self._offsets.accept_topic(self._updated_state(table).delta, topic, topic_id)
            except STORE_ERRORS as error:
                self._states.pop(table, None)
                raise DependencyUnavailable(f"the lake at {self._uri}/{table} is unavailable: {error}") from error

    def _updated_state(self, table: str) -> _TableState:
        """Return what is known of the table, updated to its newest version."""
        state = self._states.get(table)
        if state is None:
            delta = open_table(self._uri, table) or create_table(self._uri, table)
            _add_missing_columns(delta, SCHEMAS[table])
            duplicates = DuplicateFinder(filesystem(self._uri, table), ID_COLUMN[table], self._window)
            state = self._states[table] = _TableState(delta, duplicates)
        state.delta.update_incremental()
        if state.delta.version() != state.version:
            state.duplicates.sync(state.delta)
            state.committed.clear()  # Another writer may have moved them.
            state.version = state.delta.version()
        return state

    def _committed(self, state: _TableState, partition: TopicPartition) -> int:
        if partition not in state.committed:
            offset = self._offsets.last_offset(state.delta, partition)
            state.committed[partition] = -1 if offset is None else offset
        return state.committed[partition]

    def _select(self, table: str, state: _TableState, deliveries: Sequence[Delivery[Any]]) -> _Batch | None:
        """Return the rows to append and the offsets to commit with them, or None if all records were stored before."""
        partitions = {(delivery.topic, delivery.partition) for delivery in deliveries}
        new = new_deliveries(deliveries, {partition: self._committed(state, partition) for partition in partitions})
        if not new:
            return None
        offsets = {(delivery.topic, delivery.partition): delivery.offset for delivery in new}
        rows = to_arrow(table, [delivery.event for delivery in new])
        is_erased = self._tombstones.match(table, rows)
        erased = _where(rows, is_erased)
        rows = _where(rows, ~is_erased)
        return _Batch(_where(rows, ~state.duplicates.find(rows)), offsets, erased)

    def _commit(self, table: str, state: _TableState, batch: _Batch, written: _WrittenFiles) -> None:
        if table == PREDICTIONS and batch.erased.num_rows:  # First: their feedback must find the tombstones.
            self._tombstones.add(batch.erased)
        transactions = self._offsets.transactions(batch.offsets)
        try:
            state.delta.create_write_transaction(
                written.actions, "append", state.delta.schema(), ["task", "date"],
                commit_properties=CommitProperties(max_commit_retries=0, app_transactions=transactions),
                post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
            )  # fmt: skip
        except CommitFailedError as error:
            logger.info("commit conflict on %s, retrying: %s", table, error)
            raise _CommitConflict from error

    def _delete(self, table: str, written: _WrittenFiles) -> None:
        """Delete files that no commit has named: they may have texts of a person who was erased meanwhile.

        A commit would have stored the offsets of all their records. What cannot be deleted is left to the maintenance.
        """
        try:
            delete_files(written.actions, filesystem(self._uri, table))
        except STORE_ERRORS as error:
            logger.warning("files of %s that no commit names were not deleted, the maintenance does: %s", table, error)

    def _record_commit(self, state: _TableState, batch: _Batch, written: _WrittenFiles) -> int:
        """Add what was committed to the state; the table's handle is updated at the next call."""
        state.duplicates.add(batch.rows, [data_file_of(action) for action in written.actions])
        state.committed.update(batch.offsets)
        state.version += 1
        return int(batch.rows.num_rows)


def _where(rows: pa.Table, mask: NDArray[np.bool_]) -> pa.Table:
    return rows if mask.all() else rows.filter(pa.array(mask))


def _add_missing_columns(delta: DeltaTable, schema: pa.Schema) -> None:
    """Add newer columns to an older table; its rows have null there. Columns that this version does not have stay."""
    existing = {field.name for field in delta.schema().fields}
    missing = [name for name in schema.names if name not in existing]
    if missing:
        delta.alter.add_columns([field for field in Schema.from_arrow(schema).fields if field.name in missing])
