"""What a writer leaves out because its people are forgotten, also when it comes late or is replayed.

A row is left out when it is a forgotten person's and occurred no later than the moment they asked for it. What is said
of a prediction that was left out, or deleted, goes by the prediction's id, which the table `dropped` keeps: feedback
need not say whose it is. Both tables are small, and read again only when their version changes.

A writer that has just read them may still append a row of somebody who is forgotten in that very moment: the
maintenance finds it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from numpy.typing import NDArray

from schemas.lake import FORGOTTEN, PREDICTIONS
from services.prediction_log.tables import DROPPED, SCHEMAS, STORE_ERRORS, create_table, open_table
from shared.errors import DependencyUnavailable

Prediction = tuple[str, str]
"""Task and prediction_id."""


def add_tombstones(uri: str, predictions: Sequence[Prediction]) -> None:
    """Remember predictions that are not, or soon no longer, in the lake. Blocks. Raises DependencyUnavailable."""
    tasks, ids = zip(*predictions, strict=True)
    rows = pa.table({"task": tasks, "prediction_id": ids}, schema=SCHEMAS[DROPPED])
    delta = open_table(uri, DROPPED) or create_table(uri, DROPPED)
    try:
        write_deltalake(delta, rows, mode="append")
    except STORE_ERRORS as error:
        raise DependencyUnavailable(f"the lake at {uri}/{DROPPED} took no rows: {error}") from error


class Tombstones:
    """Answers for the rows of a batch. Safe to use from several threads."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._tables: dict[str, DeltaTable] = {}
        self._versions: dict[str, int] = {}
        self._until: dict[tuple[str, str], datetime] = {}
        self._dropped: set[Prediction] = set()

    def among(self, table: str, rows: pa.Table) -> NDArray[np.bool_]:
        """Which of the rows are to be left out. Blocks. Raises what delta-rs raises."""
        out = np.zeros(rows.num_rows, np.bool_)
        with self._lock:
            self._refresh()
            if self._until:
                people = zip(rows["task"].to_pylist(), rows["user_hash"].to_pylist(), strict=True)
                for number, person in enumerate(people):
                    until = self._until.get(person)
                    out[number] = until is not None and rows["occurred_at"][number].as_py() <= until
            if self._dropped and table != PREDICTIONS:
                pairs = zip(rows["task"].to_pylist(), rows["prediction_id"].to_pylist(), strict=True)
                out |= np.fromiter((pair in self._dropped for pair in pairs), np.bool_, rows.num_rows)
        return out

    def note(self, rows: pa.Table) -> None:
        """These predictions are left out. Call it before their position is committed. Raises DependencyUnavailable."""
        pairs = set(zip(rows["task"].to_pylist(), rows["prediction_id"].to_pylist(), strict=True))
        with self._lock:
            if new := sorted(pairs - self._dropped):
                add_tombstones(self._uri, new)

    def _refresh(self) -> None:
        if self._changed(FORGOTTEN):
            rows = self._tables[FORGOTTEN].to_pyarrow_table().to_pylist()
            self._until = {}
            for row in rows:
                person = (row["task"], row["subject_hash"])
                self._until[person] = max(row["occurred_at"], self._until.get(person, row["occurred_at"]))
        if self._changed(DROPPED):
            columns = self._tables[DROPPED].to_pyarrow_table()
            self._dropped = set(zip(columns["task"].to_pylist(), columns["prediction_id"].to_pylist(), strict=True))

    def _changed(self, table: str) -> bool:
        if table not in self._tables:
            delta = open_table(self._uri, table)
            if delta is None:
                return False
            self._tables[table] = delta
        else:
            self._tables[table].update_incremental()
        version = self._tables[table].version()
        changed = bool(version != self._versions.get(table))
        self._versions[table] = version
        return changed
