"""The lake's tables, written by this service alone. Read by anyone: `schemas/lake.py` is the contract.

Exactly once, in three steps. **Positions**: the offset of the last record of each partition is committed in the same
Delta transaction as the rows (`app_transactions`), and records at or below it are dropped. **Compare-and-swap**: a
commit is made only on the very version that these positions were read from (delta-rs: `max_commit_retries=0`); a
writer that was second, such as a zombie after a rebalance, reads again and drops what the first one stored. **Ids**:
a fact that reached Kafka twice has two offsets and one id; the table keeps it once, whoever stored it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
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
from services.prediction_log.parquet_files import file_of, filesystem, write
from services.prediction_log.tables import PARTITIONED, SCHEMAS, STORE_ERRORS, create_table, open_table
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import Delivery, TopicPartition

ATTEMPTS = 20
"""Rivals that may be first, in one call, before the records are redelivered."""
logger = logging.getLogger(__name__)


class Lake(Protocol):
    """What the handlers need of the lake. Every method blocks and raises DependencyUnavailable."""

    def append(self, table: str, deliveries: Sequence[Delivery[Any]]) -> int: ...
    def positions(self, table: str, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]: ...
    def recognize(self, table: str, topic: str, topic_id: UUID) -> bool: ...


class _CommitConflict(Exception):
    """Another writer committed first."""


@dataclass
class _State:
    """What this process knows of one table, as of `version`."""

    delta: DeltaTable
    duplicates: DuplicateFinder
    version: int = -1
    committed: dict[TopicPartition, int] = field(default_factory=dict)


class DeltaLake:
    """Delta tables below a folder or an s3:// URI, partitioned by task and date. Safe to use from several threads."""

    def __init__(self, uri: str, incarnation: str = "", window: int = 1_000_000) -> None:
        self._uri = uri.rstrip("/")
        self._marks = CommitOffsets(incarnation)
        self._window = window
        self._topic_ids: dict[str, UUID] = {}
        self._states: dict[str, _State] = {}
        self._locks = {table: threading.Lock() for table in PARTITIONED}
        self._left_out = Tombstones(self._uri)
        if "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)

    def append(self, table: str, deliveries: Sequence[Delivery[Any]]) -> int:
        """Append the deliveries' events (shared/kafka/decoding.py) that are not in yet; returns the number of rows.

        What is left out (a replay, a fact that is in already, a forgotten person's) moves the position all the same.
        Raises DependencyUnavailable when the store is away or other writers are always first: redeliver.
        """
        written: _Written | None = None
        with self._locks[table]:
            for attempt in range(ATTEMPTS):
                try:
                    state = self._fresh(table)
                    batch = self._choose(table, state, deliveries)
                    if batch is None:
                        return 0
                    if written is None or not written.rows.equals(batch.rows):
                        written = _Written(batch.rows, write(batch.rows, filesystem(self._uri, table)))
                    self._commit(table, state, batch, written)
                    return self._after(table, state, batch, written)
                except _CommitConflict:
                    time.sleep(random.uniform(0.0, 0.02) * attempt)  # noqa: S311 - spreads rivals, no secret
                except STORE_ERRORS as error:
                    # Whether our commit was made is unknown: what is read anew tells, and makes a second one harmless.
                    self._states.pop(table, None)
                    raise DependencyUnavailable(
                        f"the lake at {self._uri}/{table} took no rows: {error}", "Check its folder or object store"
                    ) from error
        raise DependencyUnavailable(f"other writers of {self._uri}/{table} were first {ATTEMPTS} times")

    def positions(self, table: str, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The last offset stored of each partition that the table has any of."""
        with self._locks[table]:
            try:
                state = self._fresh(table)
                found = {place: self._committed(state, place) for place in places}
            except STORE_ERRORS as error:
                self._states.pop(table, None)
                raise DependencyUnavailable(f"the lake at {self._uri}/{table} does not answer: {error}") from error
        return {place: offset for place, offset in found.items() if offset >= 0}

    def recognize(self, table: str, topic: str, topic_id: UUID) -> bool:
        """Whether this is the topic that the table was filled from, by the broker's id of it; it is noted from now on.

        True where nothing was noted yet. Blocks. Raises DependencyUnavailable.
        """
        with self._locks[table]:
            try:
                known = self._marks.knows(self._fresh(table).delta, topic, topic_id)
            except STORE_ERRORS as error:
                self._states.pop(table, None)
                raise DependencyUnavailable(f"the lake at {self._uri}/{table} does not answer: {error}") from error
        if known is False:
            return False
        self._topic_ids[topic] = topic_id
        return True

    def _fresh(self, table: str) -> _State:
        """What we know of the table, brought up to its newest version."""
        state = self._states.get(table)
        if state is None:
            delta = open_table(self._uri, table) or create_table(self._uri, table)
            _add_missing_columns(delta, SCHEMAS[table])
            duplicates = DuplicateFinder(filesystem(self._uri, table), ID_COLUMN[table], self._window)
            state = self._states[table] = _State(delta, duplicates)
        state.delta.update_incremental()
        if state.delta.version() != state.version:
            state.duplicates.follow(state.delta)
            state.committed.clear()  # Another writer may have moved them.
            state.version = state.delta.version()
        return state

    def _committed(self, state: _State, place: TopicPartition) -> int:
        if place not in state.committed:
            version = self._marks.read(state.delta, place)
            state.committed[place] = -1 if version is None else version
        return state.committed[place]

    def _choose(self, table: str, state: _State, deliveries: Sequence[Delivery[Any]]) -> _Batch | None:
        """The rows to append, and the positions that come with them; None: all was in."""
        places = {(one.topic, one.partition) for one in deliveries}
        fresh = new_deliveries(deliveries, {place: self._committed(state, place) for place in places})
        if not fresh:
            return None
        furthest = {(one.topic, one.partition): one.offset for one in fresh}
        rows = to_arrow(table, [one.event for one in fresh])
        out = self._left_out.among(table, rows)
        left_out = _where(rows, out)
        rows = _where(rows, ~out)
        return _Batch(_where(rows, ~state.duplicates.among(rows)), furthest, left_out)

    def _commit(self, table: str, state: _State, batch: _Batch, written: _Written) -> None:
        if table == PREDICTIONS and batch.left_out.num_rows:  # First: what is said about them must find them there.
            self._left_out.note(batch.left_out)
        transactions = self._marks.transactions(batch.furthest, self._topic_ids)
        try:
            state.delta.create_write_transaction(
                written.actions, "append", state.delta.schema(), ["task", "date"],
                commit_properties=CommitProperties(max_commit_retries=0, app_transactions=transactions),
                post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
            )  # fmt: skip
        except CommitFailedError as error:
            logger.info("another writer of %s was first: %s", table, error)
            raise _CommitConflict from error

    def _after(self, table: str, state: _State, batch: _Batch, written: _Written) -> int:
        """Remember what was committed; the handle learns of it next time."""
        state.duplicates.add(batch.rows, [file_of(action) for action in written.actions])
        state.committed.update(batch.furthest)
        state.version += 1
        return int(batch.rows.num_rows)


@dataclass(frozen=True)
class _Batch:
    rows: pa.Table
    furthest: Mapping[TopicPartition, int]
    left_out: pa.Table


@dataclass(frozen=True)
class _Written:
    rows: pa.Table
    actions: list[AddAction]


def _where(rows: pa.Table, chosen: NDArray[np.bool_]) -> pa.Table:
    return rows if chosen.all() else rows.filter(pa.array(chosen))


def _add_missing_columns(delta: DeltaTable, schema: pa.Schema) -> None:
    """An older table gets the columns that came since; its rows have null there. Columns we do not know stay."""
    there = {field.name for field in delta.schema().fields}
    missing = [name for name in schema.names if name not in there]
    if missing:
        delta.alter.add_columns([one for one in Schema.from_arrow(schema).fields if one.name in missing])
