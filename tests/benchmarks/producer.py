"""A producer like an application's: `python -m tests.benchmarks.producer KAFKA TOPIC COUNT RATE`.

Sends predictions of 1 KB with ids of their own, acks=all. Prints when it started (Unix seconds).
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from uuid import uuid4

from confluent_kafka import Producer

from schemas.base import Message, Role, Variant
from schemas.predictions import Confidence, PredictionLogged
from tests.benchmarks.pipeline import TASK

_STEP = 500
_SIZE = 1_000


def template() -> tuple[bytes, bytes, bytes, bytes]:
    """Return the four parts of the event's JSON around event id, time and prediction id, which differ by event."""

    def event(length: int) -> bytes:
        return (
            PredictionLogged(
                event_id="00000000-0000-4000-8000-000000000000",
                occurred_at=datetime(2000, 1, 1, tzinfo=UTC),
                task=TASK,
                task_revision="r1",
                prediction_id="PREDICTION",
                messages=(Message(role=Role.USER, content="parcel " * (length // 7)),),
                answer="delivery",
                model="base",
                variant=Variant.BASE,
                confidence=Confidence(score=0.93, logprob=-0.07, tokens=3),
                user_hash="0123456789abcdef01234567",
                latency_ms=12.5,
                prompt_tokens=120,
                answer_tokens=3,
                finish_reason="stop",
            )
            .model_dump_json()
            .encode()
        )

    whole = event(_SIZE - len(event(7)) - 40)
    first, rest = whole.split(b"00000000-0000-4000-8000-000000000000")
    second, rest = rest.split(b"2000-01-01T00:00:00Z")
    third, fourth = rest.split(b"PREDICTION")
    return first, second, third, fourth


def main() -> None:
    """Entry point."""
    kafka, topic, count, rate = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    producer = Producer(
        {
            "bootstrap.servers": kafka, "acks": "all", "enable.idempotence": True, "compression.type": "lz4",
            "linger.ms": 20, "queue.buffering.max.messages": 500_000,
        }
    )  # fmt: skip
    first, second, third, fourth = template()
    producer.list_topics(timeout=10)
    run, began = uuid4().hex[:20], time.time()
    for start in range(0, count, _STEP):
        if rate:
            time.sleep(max(0.0, began + start / rate - time.time()))
        now = datetime.now(UTC).isoformat().encode()
        for number in range(start, min(start + _STEP, count)):
            unique = b"%s%012d" % (run.encode(), number)
            uuid = b"%s-%s-4%s-8%s-%s" % (unique[:8], unique[8:12], unique[13:16], unique[17:20], unique[20:])
            prediction = b"bench." + unique + b".0123456789ab"
            value = first + uuid + second + now + third + prediction + fourth
            while True:
                try:
                    producer.produce(topic, value, prediction)
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.poll(0)
    producer.flush()
    print(began)


if __name__ == "__main__":
    main()
