"""Events to rows, and rows to roll-ups. Pure."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from schemas.base import Variant
from schemas.lake import FeedbackRow, PredictionRow
from schemas.predictions import FeedbackGiven, LabelCount, PredictionLogged, PredictionsRolledUp
from shared.delivery import Delivery
from shared.identity import event_id

MOST_FREQUENT = 100
"""Distinct answers that a roll-up names; a generation task has as many answers as predictions."""


def prediction_row(event: PredictionLogged) -> PredictionRow:
    """The lake's row of one prediction."""
    return PredictionRow(
        prediction_id=event.prediction_id,
        task=event.task,
        date=event.occurred_at.astimezone(UTC).date(),
        task_revision=event.task_revision,
        occurred_at=event.occurred_at,
        messages=json.dumps([m.model_dump(mode="json") for m in event.messages], ensure_ascii=False),
        answer=event.answer,
        model=event.model,
        adapter=event.adapter,
        variant=event.variant.value,
        confidence=event.confidence.score,
        logprob=event.confidence.logprob,
        user_hash=event.user_hash,
        latency_ms=event.latency_ms,
        prompt_tokens=event.prompt_tokens,
        answer_tokens=event.answer_tokens,
        finish_reason=event.finish_reason,
        redactions=event.redactions,
    )


def feedback_row(event: FeedbackGiven) -> FeedbackRow:
    """The lake's row of one piece of feedback."""
    return FeedbackRow(
        event_id=str(event.event_id),
        prediction_id=event.prediction_id,
        task=event.task,
        date=event.occurred_at.astimezone(UTC).date(),
        occurred_at=event.occurred_at,
        kind=event.kind,
        positive=event.positive,
        text=event.text,
        user_hash=event.user_hash,
        redactions=event.redactions,
    )


def new_deliveries(deliveries: Iterable[Delivery[Any]], committed: dict[tuple[str, int], int]) -> list[Delivery[Any]]:
    """Those above the offset that the table has committed for their partition, each once."""
    furthest = dict(committed)
    fresh = []
    for delivery in sorted(deliveries, key=lambda d: (d.topic, d.partition, d.offset)):
        place = (delivery.topic, delivery.partition)
        if delivery.offset > furthest.get(place, -1):
            furthest[place] = delivery.offset
            fresh.append(delivery)
    return fresh


def roll_up(rows: Sequence[dict[str, Any]], now: datetime) -> list[PredictionsRolledUp]:
    """One event per task, revision, variant, adapter and hour of `rows` (columns of `PredictionRow`)."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        hour = row["occurred_at"].astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        groups[(row["task"], row["task_revision"], row["variant"], row["adapter"], hour)].append(row)
    return [_roll_up_group(key, members, now) for key, members in sorted(groups.items(), key=lambda g: str(g[0]))]


def _roll_up_group(key: tuple[Any, ...], members: list[dict[str, Any]], now: datetime) -> PredictionsRolledUp:
    task, revision, variant, adapter, hour = key
    latency = np.array([row["latency_ms"] for row in members])
    confidence = [row["confidence"] for row in members if row["confidence"] is not None]
    histogram, _ = np.histogram(confidence, bins=10, range=(0.0, 1.0))
    counts = Counter(row["answer"] for row in members).most_common(MOST_FREQUENT)
    return PredictionsRolledUp(
        event_id=event_id("rolled_up", *key, len(members)),  # The same rows are the same fact, at every restating.
        occurred_at=now,
        task=task,
        task_revision=revision,
        hour=hour,
        variant=Variant(variant),
        adapter=adapter,
        predictions=len(members),
        answers=tuple(LabelCount(answer=answer, count=count) for answer, count in counts),
        confidence_histogram=tuple(int(count) for count in histogram),
        latency_ms_p50=float(np.quantile(latency, 0.5)),
        latency_ms_p95=float(np.quantile(latency, 0.95)),
    )
