"""Rows of the lake, written and read with a plain Delta client."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from schemas.base import utc_now
from schemas.lake import FEEDBACK, PREDICTIONS, REQUESTS
from services.prediction_log.maintenance.compaction import MaintenancePolicy
from services.prediction_log.maintenance.maintenance import Maintenance
from services.prediction_log.tables import SCHEMAS, create_table, open_table

TASK = "support-desk"
NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
POLICY = MaintenancePolicy(
    timedelta(minutes=10), small_files=4, target_bytes=1024 * 1024, grace_hours=0, orphan_hours=24
)


def prediction(name: str, at: datetime = NOON, **values: Any) -> dict[str, Any]:
    return {
        "prediction_id": name, "task": TASK, "date": at.date(), "task_revision": "r1", "occurred_at": at,
        "request_id": f"request-{name}", "answer_number": 0, "api": "chat", "messages": "[]", "parameters": "{}",
        "stream": False, "constrained": False, "truncated": False, "answer": "delivery", "answer_truncated": False,
        "finish_reason": "stop", "model": "base", "variant": "base", "confidence": 0.95, "user_hash": "u",
        "metadata": "{}", "latency_ms": 12.5, "prompt_tokens": 1, "answer_tokens": 1, "cached_tokens": 0,
        "reasoning_tokens": 0, "redactions": 0, **values,
    }  # fmt: skip


def feedback(name: str, of: str, at: datetime = NOON, **values: Any) -> dict[str, Any]:
    return {
        "event_id": name, "prediction_id": of, "task": TASK, "date": at.date(), "occurred_at": at, "kind": "edited",
        "positive": None, "text": None, "user_hash": None, "redactions": 0, **values,
    }  # fmt: skip


def request(name: str, at: datetime = NOON, **values: Any) -> dict[str, Any]:
    return {
        "event_id": name, "prediction_id": name, "task": TASK, "date": at.date(), "task_revision": "r1",
        "occurred_at": at, "variant": "base", "adapter": None, "user_hash": "u", "status": 200, "latency_ms": 12.5,
        "confidence": None, **values,
    }  # fmt: skip


def write(lake: Path | str, table: str, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows in one commit, with one file per partition."""
    delta = open_table(str(lake), table) or create_table(str(lake), table)
    write_deltalake(delta, pa.Table.from_pylist(list(rows), schema=SCHEMAS[table]), mode="append")


def opened(lake: Path | str, table: str) -> DeltaTable:
    delta = open_table(str(lake), table)
    assert delta is not None
    return delta


def ids(lake: Path | str, table: str) -> list[str]:
    column = {PREDICTIONS: "prediction_id", FEEDBACK: "event_id", REQUESTS: "event_id"}[table]
    return sorted(opened(lake, table).to_pyarrow_table(columns=[column])[column].to_pylist())


def maintain(lake: Path, policy: MaintenancePolicy = POLICY, **retention: int | None) -> None:
    Maintenance(str(lake), policy).run(retention, utc_now())


def write_files(lake: Path, files: int, **values: object) -> list[str]:
    names = [f"p{n}" for n in range(files)]
    for name in names:
        write(lake, PREDICTIONS, [prediction(name, **values)])
    return sorted(names)
