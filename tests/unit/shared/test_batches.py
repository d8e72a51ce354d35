"""Batches are bounded in bytes: a record may have 4 MiB, and a batch thousands of records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faststream.kafka import TestKafkaBroker

from schemas.predictions import FeedbackGiven, PredictionLogged
from shared.errors import DependencyUnavailable
from shared.kafka.consumers import BatchOptions
from shared.kafka.decoding import Decoder
from shared.kafka.delivery import Delivery, RecordPosition
from tests.unit.shared.test_consumers import TOPIC, InMemoryService, feedback

SIZES = [10, 500, 490, 2_000, 10, 10, 980, 40, *[100] * 25]


def values() -> list[bytes]:
    """Return feedback whose JSON has about so many bytes beside its other fields."""
    return [feedback(n, text="x" * size).model_dump_json().encode() for n, size in enumerate(SIZES)]


async def test_a_handler_gets_a_large_batch_in_parts_of_bounded_size_and_in_order(tmp_path: Path) -> None:
    service, parts = InMemoryService(tmp_path), []

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        parts.append([len(delivery.event.model_dump_json()) for delivery in deliveries])
        service.handled.extend(delivery.event for delivery in deliveries)

    service.consumers.on_batch(FeedbackGiven, handler, BatchOptions(max_bytes=2_000))
    async with TestKafkaBroker(service.broker):
        await service.broker.publish_batch(*values(), topic=TOPIC)
    assert [event.prediction_id for event in service.handled] == [f"p{n}" for n in range(len(SIZES))]
    assert 5 < len(parts) < len(SIZES) and all(sum(part) <= 2_000 or len(part) == 1 for part in parts)


async def test_a_batch_whose_second_part_failed_is_redelivered_as_a_whole(tmp_path: Path) -> None:
    service, calls = InMemoryService(tmp_path), 0

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise DependencyUnavailable("the store is away")

    service.consumers.on_batch(FeedbackGiven, handler, BatchOptions(max_bytes=2_000))
    async with TestKafkaBroker(service.broker):
        with pytest.raises(DependencyUnavailable):
            await service.broker.publish_batch(*values(), topic=TOPIC)
    assert service.dead_letters == []


async def test_a_message_that_is_no_event_becomes_a_dead_letter_that_quotes_nobody(tmp_path: Path) -> None:
    service, skipped = InMemoryService(tmp_path), list[RecordPosition]()

    async def handler(deliveries: list[Delivery[PredictionLogged]]) -> None:
        raise AssertionError("it must not be read")

    async def on_skipped(position: RecordPosition) -> None:
        skipped.append(position)

    service.consumers.on_batch(PredictionLogged, handler, on_skipped=on_skipped, decode=Decoder(PredictionLogged))
    old = {
        "event_id": "816c08a2-ed3f-48d0-8b5f-000000000000", "occurred_at": "2026-11-25T09:19:19Z", "task": "desk",
        "task_revision": "r1", "prediction_id": "p", "messages": [{"role": "user", "content": "the secret"}],
        "answer": "delivery", "model": "base", "variant": "base", "latency_ms": 1.0,
    }  # fmt: skip
    async with TestKafkaBroker(service.broker):
        await service.broker.publish(json.dumps(old).encode(), "predictions.logged.v1")
    (dead_letter,) = service.dead_letters
    assert "not a valid PredictionLogged: request_id" in dead_letter.error and "secret" not in dead_letter.error
    assert len(skipped) == 1, "its offset is passed"
