"""How many answers a task gives in a month, counted in the lake."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from schemas.lake import PREDICTIONS
from shared.errors import DependencyUnavailable

WINDOW_DAYS = 30
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Volume:
    """Answers of the last 30 days, and the days since the first of them: at least 1, so that an hour is no month."""

    answers: int
    days: float

    @property
    def per_month(self) -> float:
        """Answers in 30 days, if they go on as in these days."""
        return self.answers / self.days * WINDOW_DAYS


def task_volume(lake: str, task: str, now: datetime) -> Volume:
    """Count a task's answers in the lake at `lake`, a folder or an s3:// URI; 0 where there is no lake yet. Blocks.

    Raises DependencyUnavailable if the lake does not answer.
    """
    import pyarrow.compute as pc
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    since = (now - timedelta(days=WINDOW_DAYS)).astimezone(UTC)
    uri = f"{lake.rstrip('/')}/{PREDICTIONS}"
    try:
        dataset = DeltaTable(uri).to_pyarrow_dataset()
        wanted = (pc.field("task") == task) & (pc.field("date") >= since.date()) & (pc.field("occurred_at") >= since)
        answers, first = 0, None
        for batch in dataset.to_batches(columns=["occurred_at"], filter=wanted):
            if batch.num_rows:
                answers += batch.num_rows
                earliest = pc.min(batch["occurred_at"]).as_py()
                first = earliest if first is None else min(first, earliest)
    except TableNotFoundError:
        return Volume(0, 1.0)
    except (DeltaError, OSError) as error:
        raise DependencyUnavailable(f"the lake at {uri} does not answer: {error}") from error
    days = (now - first).total_seconds() / _DAY_SECONDS if first else 1.0
    return Volume(answers, min(max(days, 1.0), float(WINDOW_DAYS)))
