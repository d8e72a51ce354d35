"""Reads predictions from the lake: feedback may be about one that is not stored as a suspect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Protocol

from schemas.conversation import Answer, Call
from schemas.lake import PREDICTIONS
from services.failure_miner.domain import AnsweredPrediction
from shared.conversation import bounded_answer, bounded_call
from shared.errors import DependencyUnavailable

_CALL_JSON = ("messages", "tools", "tool_choice", "response_format", "parameters")
_LOOK_BACK = timedelta(days=92)
"""As long as Kafka retains predictions: feedback on older ones comes too late to learn from."""


class PredictionLookup(Protocol):
    """What the handlers need of the lake."""

    def find(self, task: str, prediction_id: str, around: date) -> AnsweredPrediction | None: ...


class DeltaPredictionLookup:
    """Finds predictions in the Delta table `predictions` below a folder or an s3:// URI (schemas/lake.py)."""

    def __init__(self, uri: str) -> None:
        self._uri = f"{uri.rstrip('/')}/{PREDICTIONS}"

    def find(self, task: str, prediction_id: str, around: date) -> AnsweredPrediction | None:
        """Return the prediction of this id; None if it is not in the lake (yet). Blocking: call it in a thread.

        Raises DependencyUnavailable if the lake does not answer.
        """
        import pyarrow as pa
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError
        from pyarrow.dataset import field

        # Cast, because files that delta-rs rewrote (after an erasure) hold string views, which Arrow cannot compare.
        has_id = field("prediction_id").cast(pa.string()) == prediction_id
        in_partitions = (field("task") == task) & (field("date") >= around - _LOOK_BACK)
        try:
            rows = DeltaTable(self._uri).to_pyarrow_table(filters=in_partitions & has_id).to_pylist()
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise DependencyUnavailable(f"the lake at {self._uri} does not answer: {error}") from error
        if not rows:
            return None
        return _prediction(rows[0])


def _prediction(row: Mapping[str, Any]) -> AnsweredPrediction:
    """Make a prediction of a row of the table, whose columns of JSON schemas/lake.py names."""
    call = {name: row[name] for name in ("api", "stream", "constrained", "truncated")}
    call |= {name: json.loads(row[name]) for name in _CALL_JSON if row[name] is not None}
    answer = {name: row[name] for name in ("text", "refusal", "reasoning", "finish_reason")}
    calls = json.loads(row["tool_calls"] or "[]")
    return AnsweredPrediction(
        prediction_id=row["prediction_id"],
        task=row["task"],
        task_revision=row["task_revision"],
        occurred_at=row["occurred_at"],
        call=bounded_call(Call.model_validate(call)),
        answer=bounded_answer(
            Answer.model_validate({**answer, "tool_calls": calls, "truncated": row["answer_truncated"]})
        ),
        confidence=row["confidence"],
        user_hash=row["user_hash"],
    )
