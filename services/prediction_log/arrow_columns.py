"""Converts events to Arrow tables, a column at a time: no object is made per row. Columns are in `schemas/lake.py`.

A prediction's event has a row for each of its answers. In a batch with several answers to a request, the texts of the
request are dictionary columns, which hold each text once: a conversation of 2 MiB with 128 answers would take 256 MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.conversation import plain_answer
from schemas.lake import FEEDBACK, PREDICTIONS, REQUESTS
from services.prediction_log.tables import SCHEMAS
from shared.kafka.decoding import Plain

Values = Callable[[Sequence[Plain]], Iterable[Any]]
"""Makes the values of a column of events, or of parts of them."""

_encode_json = msgspec.json.Encoder().encode
_DAY_MICROSECONDS = 86_400_000_000
_CHUNK_EVENTS = 500
"""Events converted at a time: they stay in the processor's cache while every column is read from them."""
_LARGE_TEXTS = ("messages", "tools", "tool_choice", "response_format", "parameters", "metadata")
"""Texts of a request, of which an event may have megabytes."""

ID_COLUMN = {PREDICTIONS: "prediction_id", FEEDBACK: "event_id", REQUESTS: "event_id"}
"""The column that identifies a row within its task: rows with the same id are duplicates."""


def to_arrow(table: str, events: Sequence[Plain]) -> pa.Table:
    """Return the rows of a table, in the order of `events`."""
    if not events:
        return SCHEMAS[table].empty_table()
    chunks = [events[start : start + _CHUNK_EVENTS] for start in range(0, len(events), _CHUNK_EVENTS)]
    if table != PREDICTIONS:
        tables = [_rows(table, chunk) for chunk in chunks]
    else:
        is_repeated = max(map(len, _column("answers", events))) > 1
        tables = [_prediction_rows(chunk, is_repeated) for chunk in chunks]
    return pa.concat_tables(tables).combine_chunks()


def _rows(table: str, events: Sequence[Plain]) -> pa.Table:
    schema = SCHEMAS[table]
    arrays = {field.name: pa.array(_column(field.name, events), field.type) for field in schema if field.name != "date"}
    arrays["date"] = _dates(arrays["occurred_at"])
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def _prediction_rows(events: Sequence[Plain], is_repeated: bool) -> pa.Table:
    answers_of = _column("answers", events)
    answers = list(chain.from_iterable(answers_of))
    objects = {
        "event": events, "call": _column("call", events), "usage": _column("usage", events), "answer": answers,
        "confidence": _column("confidence", answers),
    }  # fmt: skip
    event_of_row = pa.array(np.repeat(np.arange(len(events), dtype=np.int32), list(map(len, answers_of))))
    arrays = {}
    for field in SCHEMAS[PREDICTIONS]:
        if field.name not in ("answer_number", "date"):
            source, values = _COLUMNS.get(field.name) or ("event", partial(_column, field.name))
            array = pa.array(values(objects[source]), field.type)
            is_shared = is_repeated and source in ("event", "call", "usage")
            arrays[field.name] = _repeated(field.name, array, event_of_row) if is_shared else array
    numbers = chain.from_iterable(map(range, map(len, answers_of)))
    arrays["answer_number"] = pa.array(np.fromiter(numbers, np.int64, len(answers)))
    arrays["date"] = _dates(arrays["occurred_at"])
    return pa.table({name: arrays[name] for name in SCHEMAS[PREDICTIONS].names})


def _repeated(name: str, values: pa.Array, event_of_row: pa.Array) -> pa.Array:
    """Return the value of each row's event."""
    if name in _LARGE_TEXTS:
        numbers = pc.if_else(values.is_valid().take(event_of_row), event_of_row, None)
        return pa.DictionaryArray.from_arrays(numbers, values.fill_null(""))
    return values.take(event_of_row)


def _column(name: str, objects: Sequence[Plain]) -> list[Any]:
    return list(map(attrgetter(name), objects))


def _json(name: str, objects: Sequence[Plain]) -> list[bytes | None]:
    """Return compact JSON of an attribute; None where it is None or an empty tuple."""
    values = map(attrgetter(name), objects)
    return [None if value is None or value == () else _encode_json(value) for value in values]


def _answers(answers: Sequence[Plain]) -> list[str]:
    return [
        plain_answer(answer.text, answer.refusal, answer.tool_calls) if _is_mixed(answer) else answer.text
        for answer in answers
    ]


def _texts(answers: Sequence[Plain]) -> list[str | None]:
    """Return what was said beside tool calls and a refusal; None where it is the whole answer: it may be long."""
    return [answer.text if _is_mixed(answer) else None for answer in answers]


def _is_mixed(answer: Plain) -> bool:
    return bool(answer.tool_calls or answer.refusal)


def _dates(times: pa.Array) -> pa.Array:
    """Return the day of each time, in UTC. (Arrow's own cast is twenty times slower.)"""
    return pa.array((times.cast(pa.int64()).to_numpy() // _DAY_MICROSECONDS).astype(np.int32), pa.date32())


def _attributes(source: str, *names: str, **renamed: str) -> dict[str, tuple[str, Values]]:
    """Return columns that are attributes of a source, under their own name or as column=attribute."""
    columns = {name: name for name in names} | renamed
    return {column: (source, partial(_column, name)) for column, name in columns.items()}


def _jsons(source: str, *names: str) -> dict[str, tuple[str, Values]]:
    return {name: (source, partial(_json, name)) for name in names}


_COLUMNS: Mapping[str, tuple[str, Values]] = {
    **_jsons("event", "metadata"),
    **_attributes("call", "api", "stream", "constrained", "truncated"),
    **_jsons("call", "messages", "tools", "tool_choice", "response_format", "parameters", "surrogates"),
    **_attributes("usage", "prompt_tokens", "cached_tokens", "reasoning_tokens"),
    **_attributes("answer", "prediction_id", "refusal", "reasoning", "finish_reason"),
    **_attributes("answer", answer_truncated="truncated", answer_tokens="tokens"),
    **_jsons("answer", "tool_calls"),
    "answer": ("answer", _answers),
    "text": ("answer", _texts),
    **_attributes("confidence", "logprob", "calibration"),
    **_attributes("confidence", confidence="score", confidence_raw="raw"),
}
"""The columns of `predictions` that are not an attribute of the event with the same name: what they are made of."""
