"""Finds rows of a batch that must not be stored because their person was erased, also late or redelivered ones.

A row is skipped when its person was erased and it occurred no later than their request. Feedback and requests need not
name their person, and a prediction under an application's own id may be sent again with a later time, so those are
skipped by the tombstone of their prediction: the table `dropped` has the ids of predictions that were skipped or
deleted. Both tables are small, and are read again only when their version changes.

A writer that has just read them may still append a row of somebody who is being erased at that moment: the
maintenance finds it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake
from numpy.typing import NDArray

from schemas.base import Variant
from schemas.lake import FORGOTTEN, PREDICTIONS
from services.prediction_log.parquet_files import read_table
from services.prediction_log.tables import DROPPED, SCHEMAS, STORE_ERRORS, create_table, open_table
from shared.errors import DependencyUnavailable

PredictionKey = tuple[str, str]
"""Task and prediction_id."""


def add_tombstones(uri: str, predictions: Sequence[PredictionKey]) -> None:
    """Record predictions that are skipped or about to be deleted. Blocks. Raises DependencyUnavailable."""
    tasks, ids = zip(*predictions, strict=True)
    rows = pa.table({"task": tasks, "prediction_id": ids}, schema=SCHEMAS[DROPPED])
    delta = open_table(uri, DROPPED) or create_table(uri, DROPPED)
    try:
        write_deltalake(delta, rows, mode="append")
    except STORE_ERRORS as error:
        raise DependencyUnavailable(f"no rows were appended to {uri}/{DROPPED}: {error}") from error


class Tombstones:
    """The erased persons and predictions of the lake at `uri`. Safe to use from several threads."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._tables: dict[str, DeltaTable] = {}
        self._versions: dict[str, int] = {}
        self._erased_until: dict[tuple[str, str], datetime] = {}
        self._dropped: set[PredictionKey] = set()

    def match(self, table: str, rows: pa.Table) -> NDArray[np.bool_]:
        """Return which rows must be skipped. Blocks. Raises delta-rs' errors."""
        is_erased = np.zeros(rows.num_rows, np.bool_)
        with self._lock:
            self._refresh()
            if self._erased_until:
                people = zip(rows["task"].to_pylist(), rows["user_hash"].to_pylist(), strict=True)
                for number, person in enumerate(people):
                    until = self._erased_until.get(person)
                    is_erased[number] = until is not None and rows["occurred_at"][number].as_py() <= until
            if self._dropped:
                is_erased |= self._is_dropped(table, rows)
        return is_erased

    def _is_dropped(self, table: str, rows: pa.Table) -> NDArray[np.bool_]:
        """Return which rows have the tombstone of their prediction.

        Of predictions only an application's own id may come again, with a later time: without one the gateway dates it.
        """
        found = np.zeros(rows.num_rows, np.bool_)
        asked, keys = np.arange(rows.num_rows), rows.select(["task", "prediction_id"])  # Texts need not be copied.
        if table == PREDICTIONS:
            asked = np.flatnonzero(pc.equal(rows["variant"], Variant.EXTERNAL.value).to_numpy())
            keys = keys.take(pa.array(asked))
        found[asked] = np.fromiter((key in self._dropped for key in _keys(keys)), np.bool_, len(asked))
        return found

    def add(self, predictions: pa.Table) -> None:
        """Add skipped predictions. Call it before their offsets are committed. Raises DependencyUnavailable."""
        with self._lock:
            if new := sorted(set(_keys(predictions)) - self._dropped):
                add_tombstones(self._uri, new)

    def _refresh(self) -> None:
        """Read what changed. A version counts as read only then: else a failed reading would forget who was erased."""
        if (forgotten := self._changed(FORGOTTEN)) is not None:
            erased_until: dict[tuple[str, str], datetime] = {}
            for row in read_table(forgotten).to_pylist():
                person = (row["task"], row["subject_hash"])
                erased_until[person] = max(row["occurred_at"], erased_until.get(person, row["occurred_at"]))
            self._erased_until, self._versions[FORGOTTEN] = erased_until, forgotten.version()
        if (dropped := self._changed(DROPPED)) is not None:
            self._dropped = set(_keys(read_table(dropped)))
            self._versions[DROPPED] = dropped.version()

    def _changed(self, table: str) -> DeltaTable | None:
        """Return the table at its newest version, or None if that version was read or there is no table yet."""
        if table not in self._tables:
            delta = open_table(self._uri, table)
            if delta is None:
                return None
            self._tables[table] = delta
        else:
            self._tables[table].update_incremental()
        delta = self._tables[table]
        return None if delta.version() == self._versions.get(table) else delta


def _keys(rows: pa.Table) -> Iterator[PredictionKey]:
    return zip(rows["task"].to_pylist(), rows["prediction_id"].to_pylist(), strict=True)
