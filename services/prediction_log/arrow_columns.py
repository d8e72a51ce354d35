"""Converts events to Arrow tables, a column at a time: no object is made per row. Columns are in `schemas/lake.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from schemas.lake import FEEDBACK, PREDICTIONS, REQUESTS
from services.prediction_log.tables import SCHEMAS
from shared.kafka.decoding import Plain

_encode_json = msgspec.json.Encoder().encode
_DAY_MICROSECONDS = 86_400_000_000
_CHUNK_EVENTS = 500
"""Events converted at a time: they stay in the processor's cache while every column is read from them."""

ID_COLUMN = {PREDICTIONS: "prediction_id", FEEDBACK: "event_id", REQUESTS: "event_id"}
"""The column that identifies a row within its task: rows with the same id are duplicates."""


def to_arrow(table: str, events: Sequence[Plain]) -> pa.Table:
    """Return the rows of a table, in the order of `events`."""
    schema = SCHEMAS[table]
    if not events:
        return schema.empty_table()
    chunks = [
        _chunk(table, schema, events[start : start + _CHUNK_EVENTS]) for start in range(0, len(events), _CHUNK_EVENTS)
    ]
    return pa.concat_tables(chunks).combine_chunks()


def _chunk(table: str, schema: pa.Schema, events: Sequence[Plain]) -> pa.Table:
    derived = {name: derive(events) for name, derive in _DERIVED_COLUMNS[table].items()}
    arrays = {
        field.name: pa.array(derived[field.name] if field.name in derived else _column(field.name, events), field.type)
        for field in schema
        if field.name != "date"
    }
    arrays["date"] = _dates(arrays["occurred_at"])
    return pa.table([arrays[field.name] for field in schema], schema=schema)


def _column(name: str, events: Sequence[Plain]) -> list[Any]:
    return list(map(attrgetter(name), events))


def _dates(times: pa.Array) -> pa.Array:
    """Return the day of each time, in UTC. (Arrow's own cast is twenty times slower.)"""
    return pa.array((times.cast(pa.int64()).to_numpy() // _DAY_MICROSECONDS).astype(np.int32), pa.date32())


def _messages(events: Sequence[Plain]) -> list[str]:
    return [_encode_json(event.messages).decode() for event in events]


_DERIVED_COLUMNS: Mapping[str, Mapping[str, Callable[[Sequence[Plain]], Iterable[Any]]]] = {
    PREDICTIONS: {
        "messages": _messages,
        "confidence": partial(_column, "confidence.score"),
        "logprob": partial(_column, "confidence.logprob"),
        "confidence_raw": partial(_column, "confidence.raw"),
        **{
            name: partial(_column, f"confidence.{name}")
            for name in ("margin", "entropy", "outside", "uncertain_share", "calibration")
        },
    },
    FEEDBACK: {},
    REQUESTS: {},
}
"""Per table, the columns that are not an attribute of the event with the same name."""
