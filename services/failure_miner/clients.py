"""Reads predictions from the lake: feedback may be about one that is not stored as a suspect."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Protocol

from schemas.lake import PREDICTIONS
from services.failure_miner.domain import AnsweredPrediction
from shared.conversation import answer_of_row, bounded_answer, bounded_call, call_of_row
from shared.errors import DependencyUnavailable
from shared.storage.lake import check_columns

_LOOK_BACK = timedelta(days=92)
"""As long as Kafka retains predictions: feedback on older ones comes too late to learn from."""


class PredictionLookup(Protocol):
    """What the handlers need of the lake."""

    def find(self, task: str, prediction_id: str, around: date) -> AnsweredPrediction | None: ...


class DeltaPredictionLookup:
    """Finds predictions in the Delta table `predictions` below a folder or an s3:// URI (schemas/lake.py)."""

    def __init__(self, uri: str) -> None:
        self._lake = uri.rstrip("/")
        self._uri = f"{self._lake}/{PREDICTIONS}"

    def find(self, task: str, prediction_id: str, around: date) -> AnsweredPrediction | None:
        """Return the prediction of this id; None if it is not in the lake (yet). Blocking: call it in a thread.

        Raises DependencyUnavailable if the lake does not answer, OldLake if an older version wrote it.
        """
        import pyarrow as pa
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError
        from pyarrow.dataset import field

        # Cast, because files that delta-rs rewrote (after an erasure) hold string views, which Arrow cannot compare.
        has_id = field("prediction_id").cast(pa.string()) == prediction_id
        in_partitions = (field("task") == task) & (field("date") >= around - _LOOK_BACK)
        try:
            delta = DeltaTable(self._uri)
            check_columns(self._lake, PREDICTIONS, [column.name for column in delta.schema().fields])
            rows = delta.to_pyarrow_table(filters=in_partitions & has_id).to_pylist()
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise DependencyUnavailable(f"the lake at {self._uri} does not answer: {error}") from error
        if not rows:
            return None
        return _prediction(rows[0])


def _prediction(row: Mapping[str, Any]) -> AnsweredPrediction:
    return AnsweredPrediction(
        prediction_id=row["prediction_id"],
        task=row["task"],
        task_revision=row["task_revision"],
        occurred_at=row["occurred_at"],
        call=bounded_call(call_of_row(row)),
        answer=bounded_answer(answer_of_row(row)),
        confidence=row["confidence"],
        user_hash=row["user_hash"],
    )
