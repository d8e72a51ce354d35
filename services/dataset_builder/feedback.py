"""Stores what users wrote that an answer should have been, with the call that it is about: a vote like a reviewer's.

consumes  feedback.given
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial

from schemas.base import utc_now
from schemas.predictions import FeedbackGiven
from services.dataset_builder.building.votes import USER_CORRECTION, UserCorrection
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.storage.corrections import PostgresCorrectionStore
from shared.conversation import bounded_answer, bounded_call
from shared.kafka.clients import end_offsets
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery, RecordPosition
from shared.kafka.resuming import resume_where_stored
from shared.storage.predictions import AnsweredPrediction, AwaitedPredictions, LakePredictions

_MAX_FEEDBACK = 500
"""Handled at once."""


class UserFeedback:
    def __init__(
        self,
        settings: DatasetBuilderSettings,
        corrections: PostgresCorrectionStore,
        predictions: LakePredictions,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._corrections = corrections
        self._predictions = AwaitedPredictions(predictions, now)

    def subscribe(self, consumers: Consumers) -> None:
        """Register the handler."""
        batch = BatchOptions(_MAX_FEEDBACK)
        resume = resume_where_stored(self._corrections.next_offsets, partial(end_offsets, self._settings))
        consumers.on_batch(FeedbackGiven, self.on_feedback, batch, on_skipped=self._corrections.skip, resume=resume)

    async def on_feedback(self, deliveries: list[Delivery[FeedbackGiven]]) -> None:
        """Store edited texts and labels; of thumbs only the offsets, since they do not say what was right.

        Feedback of an erased person is dropped before it is looked up: the lake no longer has their predictions.
        Raises DependencyUnavailable while the lake does not have a prediction, InvalidMessage after waiting for it.
        """
        erased = await self._corrections.erased((d.event.task, d.event.user_hash) for d in deliveries)
        written = [
            d
            for d in deliveries
            if d.event.kind in ("edited", "label")
            and (d.event.text or "").strip()
            and not erased.covers(d.event.task, d.event.user_hash, d.event.occurred_at)
        ]
        predictions = await self._predictions.look_up(written)
        found = [
            (user_correction(d.event, predictions[d.event.prediction_id]), RecordPosition(*d[1:4])) for d in written
        ]
        await self._corrections.save_user_corrections(found, deliveries)


def user_correction(event: FeedbackGiven, prediction: AnsweredPrediction) -> UserCorrection:
    """Return what a user wrote as a correction of its prediction, under the revision that answered.

    Where the application named the user with the feedback only, the row is theirs, so that it can be forgotten.

    A user's newest word counts, also where it is the one before the last, which has the same event id: its time is in
    the correction's.
    """
    said_at = round(event.occurred_at.timestamp() * 1_000)
    return UserCorrection(
        correction_id=f"{USER_CORRECTION}{event.event_id}-{said_at}",
        task=prediction.task,
        task_revision=prediction.task_revision,
        prediction_id=prediction.prediction_id,
        occurred_at=event.occurred_at,
        call=bounded_call(prediction.call),
        answers=(bounded_answer(prediction.answer),),
        label=event.text or "",
        author_hash=event.user_hash,
        user_hash=prediction.user_hash or event.user_hash,
        predicted_at=prediction.occurred_at,
        app=prediction.app,
        session_hash=prediction.session_hash,
        surrogates=event.surrogates,
    )
