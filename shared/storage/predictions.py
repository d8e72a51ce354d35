"""Finds predictions in the lake, and waits for those that are not there yet: feedback may come before its prediction.

Feedback has an id and what a user said; the conversation that it is about is in the lake only.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NoReturn

from schemas.conversation import Answer, Call
from schemas.lake import PREDICTIONS
from schemas.predictions import FeedbackGiven
from shared.conversation import answer_of_row, call_of_row
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.delivery import Delivery

_LOOK_BACK = timedelta(days=92)
"""As long as Kafka retains predictions: feedback on older ones comes too late to learn from."""
FEEDBACK_PATIENCE = timedelta(minutes=4)
"""So long feedback waits for its prediction to be in the lake."""


@dataclass(frozen=True)
class AnsweredPrediction:
    """What was asked and answered in a prediction. `occurred_at` is when; erasure and retention go by it."""

    prediction_id: str
    task: str
    task_revision: str
    occurred_at: datetime
    call: Call
    answer: Answer
    confidence: float | None
    user_hash: str | None
    app: str | None = None
    session_hash: str | None = None


class LakePredictions:
    """Finds predictions in the Delta table `predictions` below a folder or an s3:// URI (schemas/lake.py)."""

    def __init__(self, uri: str) -> None:
        self._uri = f"{uri.rstrip('/')}/{PREDICTIONS}"

    def exist(self) -> bool:
        """Return True if anything was ever written to the table. Blocking."""
        from deltalake import DeltaTable

        return bool(DeltaTable.is_deltatable(self._uri))

    def find(self, task: str, prediction_ids: Collection[str], around: date) -> dict[str, AnsweredPrediction]:
        """Return those of the predictions that are in the lake, by id. `around`: a day up to 92 days after each.

        Blocking: call it in a thread. Raises DependencyUnavailable if the lake does not answer.
        """
        import pyarrow as pa
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError
        from pyarrow.dataset import field

        # Cast, because files that delta-rs rewrote (after an erasure) hold string views, which Arrow cannot compare.
        has_id = field("prediction_id").cast(pa.string()).isin(sorted(prediction_ids))
        is_wanted = (field("task") == task) & (field("date") >= around - _LOOK_BACK) & has_id
        try:
            # First when they were made: files and row groups have statistics of times, while ids have no order. So of
            # the 92 days the texts, which are nearly all of a file, are read only where these predictions are.
            table = DeltaTable(self._uri).to_pyarrow_dataset()
            times = table.to_table(columns=["occurred_at"], filter=is_wanted)["occurred_at"].unique()
            rows = table.to_table(filter=is_wanted & field("occurred_at").isin(times)).to_pylist() if times else []
        except TableNotFoundError:
            return {}
        except (DeltaError, OSError) as error:
            raise self._unavailable(error) from error
        return {row["prediction_id"]: _prediction(row) for row in rows}

    def newest(self, until: datetime) -> datetime | None:
        """Return about when the newest prediction was made, of all tasks, which clocks do not put after `until`.

        By what the table's log says of each of its files, so that none is read. None: there is none, or no log says it.
        Blocking. Raises DependencyUnavailable if the lake does not answer.
        """
        import pyarrow as pa
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            files = pa.table(DeltaTable(self._uri).get_add_actions(flatten=True))
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise self._unavailable(error) from error
        known = [name for name in ("min.occurred_at", "max.occurred_at") if name in files.column_names]
        moments = (moment for name in known for moment in files[name].to_pylist() if moment is not None)
        return max((moment for moment in moments if moment <= until), default=None)

    def _unavailable(self, error: Exception) -> DependencyUnavailable:
        return DependencyUnavailable(f"the lake at {self._uri} does not answer: {error}")


@dataclass(frozen=True)
class _Search:
    """When a prediction was looked for in vain first, and last."""

    since: datetime
    last: datetime


class AwaitedPredictions:
    """Looks up the predictions that feedback is about, and remembers since when each has been looked for in vain."""

    def __init__(self, predictions: LakePredictions, now: Callable[[], datetime]) -> None:
        self._predictions = predictions
        self._now = now
        self._missing: dict[str, _Search] = {}

    async def look_up(self, feedback: Sequence[Delivery[FeedbackGiven]]) -> dict[str, AnsweredPrediction]:
        """Return the predictions that this feedback is about, all of them, by id.

        Raises DependencyUnavailable while one is missing, InvalidMessage once it is so for longer than the patience.
        """
        by_task: dict[str, list[FeedbackGiven]] = defaultdict(list)
        for event in (delivery.event for delivery in feedback):
            by_task[event.task].append(event)
        found: dict[str, AnsweredPrediction] = {}
        for task, events in by_task.items():
            oldest = min(event.occurred_at for event in events).astimezone(UTC).date()
            wanted = {event.prediction_id for event in events}
            found |= await asyncio.to_thread(self._predictions.find, task, wanted, oldest)
        for prediction_id in found:
            self._missing.pop(prediction_id, None)
        missing = {d.event.prediction_id: _recorded_at(d) for d in feedback if d.event.prediction_id not in found}
        if missing:
            await self._wait_or_give_up(missing)
        return found

    async def _wait_or_give_up(self, missing: Mapping[str, datetime | None]) -> NoReturn:
        """Measure the wait from the feedback's record on where the lake has predictions of so much later, else from the
        first look-up: after an outage both it and the lake lag, and one partition more than another. So whatever waits
        behind one that never comes waits with it.
        """
        now = self._now()
        waited = [at for at in missing.values() if at is not None and now - at >= FEEDBACK_PATIENCE]
        newest = await asyncio.to_thread(self._predictions.newest, now) if waited else None
        for prediction_id, recorded_at in missing.items():  # All of a batch at once: they wait in parallel.
            since = self._missing[prediction_id].since if prediction_id in self._missing else now
            if recorded_at is not None and newest is not None and recorded_at + FEEDBACK_PATIENCE <= newest:
                since = min(since, recorded_at)
            self._missing[prediction_id] = _Search(since, now)
        recent = {key: search for key, search in self._missing.items() if now - search.last < 2 * FEEDBACK_PATIENCE}
        self._missing = recent
        if given_up := [key for key in missing if now - recent[key].since > FEEDBACK_PATIENCE]:
            raise InvalidMessage(f"feedback on {min(given_up)}, which the lake does not have")
        raise DependencyUnavailable(f"the lake does not have {min(missing)} yet")


def _recorded_at(delivery: Delivery[FeedbackGiven]) -> datetime | None:
    """Return when a record was written, by the clock of its producer or broker; None: it does not say."""
    return datetime.fromtimestamp(delivery.timestamp / 1_000, UTC) if delivery.timestamp > 0 else None


def _prediction(row: Mapping[str, Any]) -> AnsweredPrediction:
    return AnsweredPrediction(
        prediction_id=row["prediction_id"],
        task=row["task"],
        task_revision=row["task_revision"],
        occurred_at=row["occurred_at"],
        call=call_of_row(row),
        answer=answer_of_row(row),
        confidence=row["confidence"],
        user_hash=row["user_hash"],
        app=row["app"],
        session_hash=row["session_hash"],
    )
