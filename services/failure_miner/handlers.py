"""Stores suspects and asks people about them as events arrive; clusters them into failure modes on a cycle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, Protocol

import numpy as np

from schemas.base import utc_now
from schemas.catalog import topic_of
from schemas.cycles import CycleStarted
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import FeedbackGiven, PredictionLogged, SubjectForgotten
from schemas.tasks import TaskChanged, TaskSpec
from services.failure_miner import recipe
from services.failure_miner.clients import PredictionLookup
from services.failure_miner.domain import (
    AnsweredPrediction,
    FoundMode,
    StoredMode,
    Suspect,
    Vectors,
    corrected_prediction,
    describe_modes,
    doubtful_predictions,
    embedded_text,
    is_negative,
    may_be_asked,
    priority,
    review_question,
    same_answer,
    suspect_of,
    was_interrupted,
)
from services.failure_miner.review_budget import BudgetClaim
from services.failure_miner.settings import FailureMinerSettings
from services.failure_miner.storage import SuspectStore
from shared.cycle_step import CycleStep, current_spec, cycle_spec
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.identity import event_id
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import EventPublisher
from shared.privacy.retention import drop_expired_forever

NAME = "failure_miner"
CORRECTIONS = topic_of(CorrectionSubmitted).name
STEP = CycleStep(NAME, "failures", inputs=(topic_of(PredictionLogged).name, topic_of(FeedbackGiven).name, CORRECTIONS))


class Embedder(Protocol):
    """What the handlers need of the sentence encoder."""

    def embed(self, texts: Sequence[str]) -> Vectors: ...


class Handlers:
    def __init__(
        self,
        settings: FailureMinerSettings,
        suspects: SuspectStore,
        embedder: Embedder,
        predictions: PredictionLookup,
        publisher: EventPublisher,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._suspects = suspects
        self._embedder = embedder
        self._predictions = predictions
        self._publisher = publisher
        self._now = now
        self._tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)
        self._missing_since: dict[str, datetime] = {}

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        self._tasks = consumers.table(TaskChanged)
        batch, skip = BatchOptions(self._settings.failure_miner_batch), self._suspects.skip
        consumers.on_batch(PredictionLogged, self.on_predictions, batch, on_skipped=skip)
        consumers.on_batch(FeedbackGiven, self.on_feedback, batch, on_skipped=skip)
        consumers.on_batch(CorrectionSubmitted, self.on_corrections, batch, on_skipped=skip)
        consumers.on(SubjectForgotten, self._suspects.forget)
        consumers.on(CycleStarted, self.on_cycle_started)

    async def expire_forever(self) -> None:
        """Delete suspects when their predictions leave the lake, as a background task."""
        await drop_expired_forever(self._tasks, self._suspects.expire)

    async def on_predictions(self, deliveries: list[Delivery[PredictionLogged]]) -> None:
        """Store the suspects among them and ask people about those, the least confident first."""
        specs = await self._specs(deliveries)
        suspicious = await asyncio.to_thread(_find_suspects, deliveries, specs)
        await self._save_and_ask(suspicious, deliveries, specs, Purpose.LOW_CONFIDENCE)

    async def on_feedback(self, deliveries: list[Delivery[FeedbackGiven]]) -> None:
        """Make a suspect of each prediction that a user called wrong, however confident the model was.

        An answer that was broken off is none: the user saw only a part of it.
        Feedback of an erased person is dropped before it is looked up: the lake no longer has their predictions.
        Raises DependencyUnavailable while the lake does not have a prediction, InvalidMessage after waiting for it.
        """
        erased = await self._suspects.erased((d.event.task, d.event.user_hash) for d in deliveries)
        negative = {
            d.event.prediction_id: d
            for d in deliveries
            if is_negative(d.event) and not erased.covers(d.event.task, d.event.user_hash, d.event.occurred_at)
        }
        stored = await self._suspects.stored_ids(negative) if negative else set()
        looked_up = await self._look_up([d for prediction_id, d in negative.items() if prediction_id not in stored])
        found = [(prediction, d) for prediction, d in looked_up if not was_interrupted(prediction.answer)]
        specs = await self._specs([d for _, d in found])
        await self._save_and_ask(found, deliveries, specs, Purpose.FEEDBACK)

    async def on_corrections(self, deliveries: list[Delivery[CorrectionSubmitted]]) -> None:
        """Store people's labels. A corrected answer that is no suspect becomes one.

        The correction of a blind pair does not say which answer was production's, so it only labels stored suspects.
        """
        corrected = {
            d.event.prediction_id: d
            for d in deliveries
            if d.event.label is not None
            and d.event.purpose is not Purpose.DISCORDANT_PAIR
            and not same_answer(d.event.label, d.event.answers[0].plain)
        }
        stored = await self._suspects.stored_ids(corrected) if corrected else set()
        new = [(corrected_prediction(d.event), d) for key, d in corrected.items() if key not in stored]
        await self._suspects.save_labels(deliveries, await self._embed(new))

    async def on_cycle_started(self, event: CycleStarted) -> None:
        """Cluster the cycle's suspects into failure modes and publish them, or why that failed.

        Raises DependencyUnavailable until everything below the fence is stored.
        """
        await STEP.run(event, self._suspects, self._publisher, self._cluster)

    async def _cluster(self, event: CycleStarted) -> FailuresClustered:
        cycle_id = str(event.cycle_id)
        spec = await cycle_spec(event, self._tasks, self._now())
        suspects = await self._suspects.unclustered(
            event.task, event.task_revision, event.data_cutoff, event.fence,
            self._settings.failure_miner_max_suspects,
        )  # fmt: skip
        wrong = [s for s in suspects if s.label is None or not same_answer(s.label, s.answer)]
        right = [s for s in suspects if s.label is not None and same_answer(s.label, s.answer)]
        stored = await self._suspects.modes(event.task, event.task_revision)
        found = await asyncio.to_thread(_find_modes, wrong, stored, cycle_id, spec)
        clustered = FailuresClustered(
            event_id=event_id("failures.clustered", cycle_id),
            occurred_at=self._now(),
            task=event.task,
            task_revision=event.task_revision,
            cycle_id=cycle_id,
            suspects=len(wrong),
            noise=len(wrong) - sum(len(mode.members) for mode in found),
            modes=tuple(mode.mode for mode in found),
            data_cutoff=event.data_cutoff,
            fence=event.fence,
        )
        return await self._suspects.save_clustering(clustered, [*wrong, *right], found)

    async def _save_and_ask(
        self,
        found: Sequence[tuple[AnsweredPrediction, Delivery[Any]]],
        deliveries: Sequence[Delivery[Any]],
        specs: Mapping[str, TaskSpec],
        purpose: Purpose,
    ) -> None:
        """Store suspects, then publish questions: a redelivery is granted, and publishes, the same questions again.

        Predictions of another revision of their task are stored, but nobody is asked about them.
        """
        asked = [
            prediction
            for prediction, _ in found
            if prediction.task_revision == specs[prediction.task].revision and may_be_asked(prediction, purpose)
        ]
        asked.sort(key=priority, reverse=True)
        today = self._now().astimezone(UTC).date()
        claims = [
            BudgetClaim(p.prediction_id, p.task, today, specs[p.task].failures.review_budget_per_day) for p in asked
        ]
        granted = await self._suspects.save(await self._embed(found), claims, deliveries)
        for prediction in asked:
            if prediction.prediction_id in granted:
                await self._publisher.publish(review_question(specs[prediction.task], prediction, purpose))

    async def _look_up(
        self, deliveries: Sequence[Delivery[FeedbackGiven]]
    ) -> list[tuple[AnsweredPrediction, Delivery[FeedbackGiven]]]:
        found, missing = [], []
        for delivery in deliveries:
            event = delivery.event
            day = event.occurred_at.astimezone(UTC).date()
            prediction = await asyncio.to_thread(self._predictions.find, event.task, event.prediction_id, day)
            if prediction is None:
                missing.append(event.prediction_id)
            else:
                found.append((prediction, delivery))
                self._missing_since.pop(event.prediction_id, None)
        if missing:
            self._wait_or_give_up(missing)
        return found

    def _wait_or_give_up(self, missing: Sequence[str]) -> NoReturn:
        """Measure the wait from the first look-up, not from the feedback: after an outage both it and the lake lag."""
        now, patience = self._now(), timedelta(seconds=self._settings.failure_miner_feedback_patience_seconds)
        self._missing_since = {key: since for key, since in self._missing_since.items() if now - since < 2 * patience}
        for prediction_id in missing:  # All of the batch at once: they wait in parallel.
            if now - self._missing_since.setdefault(prediction_id, now) > patience:
                raise InvalidMessage(f"feedback on {prediction_id}, which the lake does not have")
        raise DependencyUnavailable(f"the lake does not have {missing[0]} yet")

    async def _specs(self, deliveries: Sequence[Delivery[Any]]) -> dict[str, TaskSpec]:
        """Return the current spec of each task of a batch, looked up once by the task's newest event."""
        newest = {d.event.task: d.event for d in sorted(deliveries, key=lambda d: d.event.occurred_at)}
        return {task: await current_spec(event, self._tasks, self._now()) for task, event in newest.items()}

    async def _embed(self, found: Sequence[tuple[AnsweredPrediction, Delivery[Any]]]) -> list[Suspect]:
        """Make suspects of predictions, each with the event that made it one."""
        texts = [embedded_text(prediction.call) for prediction, _ in found]
        distinct = list(dict.fromkeys(texts))  # The answers of a request share their conversation.
        vectors = dict(zip(distinct, await asyncio.to_thread(self._embedder.embed, distinct), strict=True))
        return [
            suspect_of(prediction, delivery, vectors[text])
            for text, (prediction, delivery) in zip(texts, found, strict=True)
        ]


def _find_suspects(
    deliveries: Sequence[Delivery[PredictionLogged]], specs: Mapping[str, TaskSpec]
) -> list[tuple[AnsweredPrediction, Delivery[Any]]]:
    """Find the suspects of a batch. It takes a while where calls are long: call it in a thread."""
    return [
        (prediction, delivery)
        for delivery in deliveries
        for prediction in doubtful_predictions(delivery.event, specs[delivery.event.task].failures.confidence_threshold)
    ]


def _find_modes(
    wrong: Sequence[Suspect], stored: Sequence[StoredMode], cycle_id: str, spec: TaskSpec
) -> list[FoundMode]:
    """Cluster suspects and describe the clusters. Blocking: call it in a thread."""
    if not wrong:
        return []
    rules = spec.failures
    clusters = recipe.cluster(np.stack([s.embedding for s in wrong]), rules.min_cluster_size, rules.min_samples)
    return describe_modes(wrong, clusters.tolist(), stored, cycle_id, rules.same_mode_cosine)
