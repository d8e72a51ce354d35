"""A producer like an application's: `python -m tests.benchmarks.producer KAFKA TOPIC COUNT RATE`.

Sends predictions of 1 KB with ids of their own, acks=all, in the form that the gateway gives them. Prints when it
started (Unix seconds).
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from uuid import uuid4

from confluent_kafka import Producer

from schemas.base import Variant
from schemas.conversation import Call, FinishReason, Message
from schemas.predictions import Confidence, LoggedAnswer, PredictionLogged, Usage
from shared.kafka.clients import COMPRESSION
from tests.benchmarks.pipeline import TASK
from tests.benchmarks.targets import texts

_STEP = 500
_SIZE = 1_000
_DISTINCT = 64
"""Texts that take turns."""


_EVENT_ID, _TIME, _REQUEST, _PREDICTION = (
    "00000000-0000-4000-8000-000000000000", datetime(2000, 1, 1, tzinfo=UTC), "{request}", "{prediction}",
)  # fmt: skip


def template(seed: int = 0) -> list[bytes]:
    """Return the five parts of an event's JSON around event id, time, request id and prediction id."""
    (text,) = texts(1, seed)
    rest = _event(text[: _SIZE - len(_event("")) - 72])
    parts = []
    for varying in (_EVENT_ID, "2000-01-01T00:00:00Z", _REQUEST, _PREDICTION):
        part, rest = rest.split(varying.encode())
        parts.append(part)
    return [*parts, rest]


def _event(text: str) -> bytes:
    answer = LoggedAnswer(
        prediction_id=_PREDICTION, text="delivery", finish_reason=FinishReason.STOP, tokens=3,
        confidence=Confidence(score=0.93, logprob=-0.07, tokens=3),
    )  # fmt: skip
    event = PredictionLogged(
        event_id=_EVENT_ID, occurred_at=_TIME, task=TASK, task_revision="r1", request_id=_REQUEST,
        call=Call(messages=(Message(role="user", content=text),), parameters={"temperature": 0.0}),
        answers=(answer,), model="base", variant=Variant.BASE, usage=Usage(prompt_tokens=120, answer_tokens=3),
        user_hash="0123456789abcdef01234567", app="shop", latency_ms=12.5,
    )  # fmt: skip
    # What has its default is left out of the call and of its answers.
    short = event.model_dump(mode="json", include={"call", "answers"}, exclude_defaults=True)
    return json.dumps(event.model_dump(mode="json") | short, separators=(",", ":")).encode()


def main() -> None:
    """Entry point."""
    kafka, topic, count, rate = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    producer = Producer(
        {
            "bootstrap.servers": kafka, "acks": "all", "enable.idempotence": True,
            "compression.type": COMPRESSION, "linger.ms": 20, "queue.buffering.max.messages": 500_000,
        }
    )  # fmt: skip
    templates = [template(seed) for seed in range(_DISTINCT)]
    producer.list_topics(timeout=10)
    run, began = uuid4().hex[:20], time.time()
    for start in range(0, count, _STEP):
        if rate:
            time.sleep(max(0.0, began + start / rate - time.time()))
        now = datetime.now(UTC).isoformat().encode()
        for number in range(start, min(start + _STEP, count)):
            unique = b"%s%012d" % (run.encode(), number)
            uuid = b"%s-%s-4%s-8%s-%s" % (unique[:8], unique[8:12], unique[13:16], unique[17:20], unique[20:])
            first, second, third, fourth, fifth = templates[number % _DISTINCT]
            prediction = b"bench." + unique + b".0123456789ab"
            value = first + uuid + second + now + third + unique + fourth + prediction + fifth
            while True:
                try:
                    producer.produce(topic, value, unique)
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.poll(0)
    producer.flush()
    print(began)


if __name__ == "__main__":
    main()
