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
    "prediction_id", "task", "task_revision", "answer", "model", "adapter", "variant", "user_hash", "latency_ms",
    "prompt_tokens", "answer_tokens", "finish_reason", "redactions",
)  # fmt: skip
_CONFIDENCE = ("logprob", "margin", "entropy", "outside", "uncertain_share", "calibration")


def row(value: bytes) -> dict[str, Any]:
    """Return the lake's columns of an event."""
    event = orjson.loads(value)
    occurred_at = datetime.fromisoformat(event["occurred_at"])
    return {
        **{name: event[name] for name in _COLUMNS},
        "occurred_at": occurred_at,
        "date": occurred_at.date(),
        "messages": orjson.dumps(event["messages"]).decode(),
        "confidence": event["confidence"]["score"],
        "confidence_raw": event["confidence"]["raw"],
        **{name: event["confidence"][name] for name in _CONFIDENCE},
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
        table = pa.Table.from_pylist([row(record.value()) for record in records])
        pq.write_to_dataset(table, folder, partition_cols=["task", "date"])
        consumer.commit(asynchronous=True)
        total += len(records)
        print(total, time.time(), flush=True)


if __name__ == "__main__":
    main()
