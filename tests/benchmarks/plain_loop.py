"""The peer of the event log: a plain loop from Kafka to Parquet. `plain_loop KAFKA TOPIC FOLDER BATCH`.

confluent-kafka, orjson and pyarrow; files by task and date. Offsets are committed apart from the rows, so a crash loses
or doubles rows. Prints `rows time` (Unix seconds) after every file.
"""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer

_COLUMNS = (
    "request_id", "task", "task_revision", "model", "adapter", "variant", "user_hash", "session_hash", "app",
    "gateway_version", "latency_ms", "redactions",
)  # fmt: skip
_ANSWER = ("prediction_id", "refusal", "reasoning", "finish_reason")
_CONFIDENCE = ("logprob", "calibration")
_JSON = ("messages", "tools", "tool_choice", "response_format", "parameters")


def rows(value: bytes) -> list[dict[str, Any]]:
    """Return the lake's columns of an event, a row for each answer."""
    event = orjson.loads(value)
    call, usage, occurred_at = event["call"], event["usage"], datetime.fromisoformat(event["occurred_at"])
    shared = {
        **{name: event[name] for name in _COLUMNS},
        "occurred_at": occurred_at,
        "date": occurred_at.date(),
        "api": call.get("api", "chat"),
        **{name: call.get(name, False) for name in ("stream", "constrained", "truncated")},
        **{name: orjson.dumps(call[name]).decode() if name in call else None for name in _JSON},
        "metadata": orjson.dumps(event["metadata"]).decode(),
        **{name: usage[name] for name in ("prompt_tokens", "cached_tokens", "reasoning_tokens")},
    }
    return [shared | _answer(number, answer) for number, answer in enumerate(event["answers"])]


def _answer(number: int, answer: dict[str, Any]) -> dict[str, Any]:
    confidence = answer.get("confidence", {})
    return {
        "answer_number": number,
        "answer": answer.get("text", ""),
        "tool_calls": orjson.dumps(answer["tool_calls"]).decode() if "tool_calls" in answer else None,
        **{name: answer.get(name) for name in _ANSWER},
        "answer_truncated": answer.get("truncated", False),
        "answer_tokens": answer.get("tokens", 0),
        "confidence": confidence.get("score"),
        "confidence_raw": confidence.get("raw"),
        **{name: confidence.get(name) for name in _CONFIDENCE},
    }


def main() -> None:
    """Entry point."""
    kafka, topic, folder, batch = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    consumer = Consumer(
        {
            "bootstrap.servers": kafka, "group.id": f"plain.{topic}", "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )  # fmt: skip
    consumer.subscribe([topic])
    total = 0
    while True:
        records = [record for record in consumer.consume(batch, timeout=0.5) if record.error() is None]
        if not records:
            continue
        table = pa.Table.from_pylist([row for record in records for row in rows(record.value())])
        pq.write_to_dataset(table, folder, partition_cols=["task", "date"])
        consumer.commit(asynchronous=True)
        total += len(records)
        print(total, time.time(), flush=True)


if __name__ == "__main__":
    main()
