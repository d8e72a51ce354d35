"""Events as prediction_log's handlers get them, and the lake as readers get it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deltalake import DeltaTable

from schemas.base import Event, Variant
from schemas.conversation import Call, FinishReason, Message
from schemas.lake import FEEDBACK, PREDICTIONS, REQUESTS
from schemas.predictions import Confidence, FeedbackGiven, LoggedAnswer, PredictionLogged, RequestObserved, Usage
from shared.identity import event_id
from shared.kafka.decoding import Decoder, Plain
from shared.kafka.delivery import Delivery

TASK = "support-desk"
NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
TOPICS = {PREDICTIONS: "predictions.logged.v1", FEEDBACK: "feedback.given.v1", REQUESTS: "requests.observed.v1"}
_DECODERS = {kind: Decoder(kind) for kind in (PredictionLogged, FeedbackGiven, RequestObserved)}
_HEADERS: Mapping[str, str] = MappingProxyType({})


CONFIDENCE = Confidence(score=0.9, logprob=-0.1, tokens=1, raw=0.95, calibration="support-desk-cal")


def prediction(
    name: str,
    at: datetime = NOON,
    user: str | None = "u",
    task: str = TASK,
    text: str = "delivery",
    answers: int = 1,
) -> PredictionLogged:
    """Return a request with equal answers, whose ids are `name`, `name+1` …"""
    names = [name, *(f"{name}+{number}" for number in range(1, answers))]
    return PredictionLogged(
        event_id=event_id(name), occurred_at=at, task=task, task_revision="r1", request_id=f"request-{name}",
        call=Call(messages=(Message(role="user", content="where is my parcel?"),), parameters={"temperature": 0.0}),
        answers=tuple(
            LoggedAnswer(
                prediction_id=name, text=text, finish_reason=FinishReason.STOP, confidence=CONFIDENCE, tokens=2
            )
            for name in names
        ),
        model="base", variant=Variant.BASE, usage=Usage(prompt_tokens=9, answer_tokens=2 * len(names), cached_tokens=4),
        user_hash=user, app="shop", metadata={"channel": "mail"}, latency_ms=12.5,
    )  # fmt: skip


def feedback(name: str, of: str, at: datetime = NOON, user: str | None = None) -> FeedbackGiven:
    return FeedbackGiven(
        event_id=event_id(name), occurred_at=at, task=TASK, task_revision="r1", prediction_id=of, kind="thumbs",
        positive=True, user_hash=user,
    )  # fmt: skip


def request(name: str, at: datetime = NOON, user: str | None = "u") -> RequestObserved:
    return RequestObserved(
        event_id=event_id(name), occurred_at=at, task=TASK, task_revision="r1", prediction_id=name,
        variant=Variant.BASE, user_hash=user, status=502, latency_ms=3.0,
    )  # fmt: skip


def plain(event: Event) -> Plain:
    return _DECODERS[type(event)](event.model_dump_json().encode())  # type: ignore[index]


def delivery(event: Event, offset: int, partition: int = 0) -> Delivery[Any]:
    table = {PredictionLogged: PREDICTIONS, FeedbackGiven: FEEDBACK, RequestObserved: REQUESTS}[type(event)]  # type: ignore[index]
    return Delivery(plain(event), TOPICS[table], partition, offset, _HEADERS)  # type: ignore[type-var]


def numbered(partition: int, offset: int) -> Delivery[Any]:
    """Return the prediction at a position, the same at every delivery."""
    return delivery(prediction(f"p-{partition}-{offset}"), offset, partition)


def golden(name: str) -> PredictionLogged:
    """Return a golden message of the contract: `tools`, a conversation of several turns, or `truncated`."""
    path = Path(__file__).parents[3] / "schemas" / "examples" / TOPICS[PREDICTIONS] / f"{name}.json"
    return PredictionLogged.model_validate_json(path.read_bytes())


def stored_rows(lake: Path, table: str = PREDICTIONS) -> dict[str, dict[str, Any]]:
    """Return a table's rows by prediction id."""
    return {row["prediction_id"]: row for row in DeltaTable(lake / table).to_pyarrow_table().to_pylist()}


def stored_ids(lake: Path, table: str = PREDICTIONS) -> list[str]:
    """Return the ids of a table's rows, sorted, with duplicates."""
    column = {PREDICTIONS: "prediction_id", FEEDBACK: "event_id", REQUESTS: "event_id"}[table]
    return sorted(DeltaTable(lake / table).to_pyarrow_table(columns=[column])[column].to_pylist())


def rows_hash(lake: Path, table: str = PREDICTIONS) -> str:
    """Return a hash of a table's rows that does not depend on their order and files."""
    rows = DeltaTable(lake / table).to_pyarrow_table().to_pylist()
    return hashlib.sha256("\n".join(sorted(repr(sorted(row.items())) for row in rows)).encode()).hexdigest()
