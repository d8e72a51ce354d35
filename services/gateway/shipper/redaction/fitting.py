"""Checks that a record is an event of this version, and cuts one that has grown too large for Kafka. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from schemas.catalog import topic_of
from schemas.predictions import PredictionLogged
from services.gateway.shipper.redaction.allowed import PLACES
from shared.conversation.truncation import cut_answer, cut_call, cut_text
from shared.errors import InvalidMessage
from shared.kafka.clients import MAX_MESSAGE_BYTES
from shared.spool import Record

PREDICTIONS = topic_of(PredictionLogged).name
MAX_EVENT = MAX_MESSAGE_BYTES - 64 * 1024
"""Bytes of an event; its key, its headers and what Kafka adds have the rest."""
_MIN_ROOM = 64 * 1024
"""Bytes for the texts of an event without which it says nothing."""
_SHARES = (1.0, 0.5, 0.2)
"""Cutting goes by estimates: what is still too large is cut to less."""


def read_event(record: Record) -> dict[str, Any]:
    """Decode a record of the spool. Raises InvalidMessage if it is not an event of this version."""
    if record.topic not in PLACES:
        raise InvalidMessage(f"{record.topic} is not a topic that the gateway writes")
    try:
        data = orjson.loads(record.value)
    except orjson.JSONDecodeError as error:
        raise InvalidMessage(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidMessage(f"not an event of {record.topic}")
    if not isinstance(data.get("redactions", 0), int):
        raise InvalidMessage(f"not an event of {record.topic}: `redactions` is no number")
    if record.topic == PREDICTIONS:
        _check_prediction(data)
    return data


def fitted(record: Record, data: dict[str, Any]) -> bytes:
    """Return the event as JSON that fits a Kafka record, its longest texts cut if it does not fit as it is.

    Raises InvalidMessage if it is too large even without its texts.
    """
    for share in _SHARES:
        cut = _cut(record.topic, data, int(MAX_EVENT * share))
        if cut is not None and len(value := orjson.dumps(cut)) <= MAX_EVENT:
            return value
    raise InvalidMessage(f"an event of {len(record.value)} bytes is too large for {record.topic}, even cut")


def _check_prediction(data: dict[str, Any]) -> None:
    call, answers = data.get("call"), data.get("answers")
    messages = call.get("messages") if isinstance(call, dict) else None
    if not _are_objects(messages) or not _are_objects(answers):
        raise InvalidMessage(f"not an event of {PREDICTIONS}: `call.messages` and `answers` are lists of objects")


def _are_objects(items: Any) -> bool:
    return isinstance(items, list) and all(isinstance(item, dict) for item in items)


def _cut(topic: str, data: dict[str, Any], max_bytes: int) -> dict[str, Any] | None:
    """Return a copy with shorter texts; None if there is no room for texts."""
    if topic != PREDICTIONS:
        text = data.get("text")
        return {**data, "text": cut_text(text, max_bytes // 2)} if isinstance(text, str) else None
    answers: list[dict[str, Any]] = data["answers"]
    rest = len(orjson.dumps({**data, "call": None, "answers": None}))
    room = max_bytes - rest - len(answers)
    if room < _MIN_ROOM:
        return None
    each = room // 2 // max(len(answers), 1)
    cut = [cut_answer(answer, each) for answer in answers]
    return {**data, "call": cut_call(data["call"], room - len(orjson.dumps(cut))), "answers": cut}
