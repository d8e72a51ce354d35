"""The lake's tables, written by this service alone. Read by anyone: `schemas/lake.py` is the contract.

Exactly once: the offset of the last row of each partition is committed in the same Delta transaction as the rows
(`app_transactions`). delta-rs stores these versions but accepts an old one, so the writer reads them first and drops
what is already in. Two writers of one partition (a zombie after a rebalance) meet in Delta's own conflict check: the
loser is redelivered and then drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from schemas.base import Frozen
from schemas.lake import FEEDBACK, PREDICTIONS, FeedbackRow, PredictionRow
from services.prediction_log.domain import new_deliveries
from shared.delivery import Delivery
from shared.errors import DependencyUnavailable

_TIME = pa.timestamp("us", tz="UTC")
_ARROW = {
    "str": pa.string(), "str | None": pa.string(), "float": pa.float64(), "float | None": pa.float64(),
    "int": pa.int64(), "int | None": pa.int64(), "bool | None": pa.bool_(), "date": pa.date32(), "datetime": _TIME,
}  # fmt: skip


class Lake(Protocol):
    """What the handlers need of the lake."""

    def append(self, table: str, deliveries: Sequence[Delivery[Any]], rows: Any) -> int: ...
    def forget(self, task: str, subject_hash: str) -> None: ...
    def since(self, start: datetime) -> list[dict[str, Any]]: ...


def arrow_schema(row: type[Frozen]) -> pa.Schema:
    """The columns of a row model as an Arrow schema."""
    return pa.schema([pa.field(name, _ARROW[str(field)]) for name, field in row.__annotations__.items()])


SCHEMAS = {PREDICTIONS: arrow_schema(PredictionRow), FEEDBACK: arrow_schema(FeedbackRow)}


class DeltaLake:
    """Delta tables below a folder or an s3:// URI, partitioned by task and date."""

    def __init__(self, uri: str, incarnation: str = "") -> None:
        self._uri = uri.rstrip("/")
        self._incarnation = incarnation
        if "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)

    def append(self, table: str, deliveries: Sequence[Delivery[Any]], rows: Any) -> int:
        """Append `rows(delivery.event)` of the deliveries that are not in yet; returns how many were new.

        Raises DependencyUnavailable when another writer was first or the store is away: redeliver.
        """
        delta = self._open(table)
        places = {(d.topic, d.partition) for d in deliveries}
        committed = {place: self._committed(delta, place) for place in places}
        fresh = new_deliveries(deliveries, committed)
        if not fresh:
            return 0
        furthest: dict[tuple[str, int], int] = {}
        for delivery in fresh:
            furthest[(delivery.topic, delivery.partition)] = delivery.offset
        transactions = [Transaction(self._app_id(place), offset) for place, offset in sorted(furthest.items())]
        data = pa.Table.from_pylist([rows(d.event).model_dump() for d in fresh], schema=SCHEMAS[table])
        try:
            write_deltalake(
                delta, data, mode="append", commit_properties=CommitProperties(app_transactions=transactions)
            )
        except (DeltaError, OSError) as error:
            raise DependencyUnavailable(f"the lake at {self._uri}/{table} took no rows: {error}") from error
        return len(fresh)

    def forget(self, task: str, subject_hash: str) -> None:
        """Delete a person's predictions. Old versions of the table keep them until they are vacuumed."""
        predicate = f"task = '{task}' AND user_hash = '{subject_hash}'"
        try:
            self._open(PREDICTIONS).delete(predicate)
        except (DeltaError, OSError) as error:
            raise DependencyUnavailable(f"the lake did not forget: {error}") from error

    def since(self, start: datetime) -> list[dict[str, Any]]:
        """Rows of `predictions` that occurred at or after `start`, without their messages."""
        columns = [name for name in SCHEMAS[PREDICTIONS].names if name != "messages"]
        filters = [("date", ">=", start.date()), ("occurred_at", ">=", start)]
        table = self._open(PREDICTIONS).to_pyarrow_table(columns=columns, filters=filters)
        return list(table.to_pylist())

    def _open(self, table: str) -> DeltaTable:
        uri = f"{self._uri}/{table}"
        try:
            return DeltaTable(uri)
        except TableNotFoundError:
            return DeltaTable.create(
                uri, schema=SCHEMAS[table], mode="ignore", partition_by=["task", "date"], name=table
            )
        except (DeltaError, OSError) as error:
            raise DependencyUnavailable(f"the lake at {uri} does not answer: {error}") from error

    def _committed(self, delta: DeltaTable, place: tuple[str, int]) -> int:
        version = delta.transaction_version(self._app_id(place))
        return -1 if version is None else version

    def _app_id(self, place: tuple[str, int]) -> str:
        """The writer's name in the Delta log. Offsets of another incarnation of the broker are another writer's."""
        topic, partition = place
        return f"{self._incarnation}:{topic}/{partition}" if self._incarnation else f"{topic}/{partition}"
