"""Events to Arrow tables, a column at a time: no object is made per row. The columns are those of `schemas/lake.py`."""

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

_JSON = msgspec.json.Encoder().encode
_DAY = 86_400_000_000
_CHUNK = 500
"""Events turned into columns at a time: they stay in the processor's cache while every column is read from them."""

ID_COLUMN = {PREDICTIONS: "prediction_id", FEEDBACK: "event_id", REQUESTS: "event_id"}
"""Same id within a task, same fact."""


def to_arrow(table: str, events: Sequence[Plain]) -> pa.Table:
    """The rows of a table, in the order of `events`."""
    schema = SCHEMAS[table]
    if not events:
        return schema.empty_table()
    parts = [_chunk(table, schema, events[start : start + _CHUNK]) for start in range(0, len(events), _CHUNK)]
    return pa.concat_tables(parts).combine_chunks()


def _chunk(table: str, schema: pa.Schema, events: Sequence[Plain]) -> pa.Table:
    made = {name: make(events) for name, make in _MADE[table].items()}
    arrays = {
        field.name: pa.array(made[field.name] if field.name in made else _column(field.name, events), field.type)
        for field in schema
        if field.name != "date"
    }
    arrays["date"] = _days(arrays["occurred_at"])
    return pa.table([arrays[field.name] for field in schema], schema=schema)


def _column(name: str, events: Sequence[Plain]) -> list[Any]:
    return list(map(attrgetter(name), events))


def _days(times: pa.Array) -> pa.Array:
    """The day of each time, in UTC. (Arrow's own cast is twenty times slower.)"""
    return pa.array((times.cast(pa.int64()).to_numpy() // _DAY).astype(np.int32), pa.date32())


def _messages(events: Sequence[Plain]) -> list[str]:
    return [_JSON(e.messages).decode() for e in events]


_MADE: Mapping[str, Mapping[str, Callable[[Sequence[Plain]], Iterable[Any]]]] = {
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
