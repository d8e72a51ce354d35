"""Events in: suspects, embedded and stored, and questions to people. A cycle in: failure modes out."""

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
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import FeedbackGiven, PredictionLogged, SubjectForgotten
from schemas.tasks import TaskChanged, TaskSpec
from services.failure_miner import recipe
from services.failure_miner.clients import Lake
from services.failure_miner.domain import (
    Answered,
    FoundMode,
    StoredMode,
    Suspect,
    Vectors,
    describe,
    is_negative,
    is_suspect,
    question,
    same_answer,
    suspect_of_correction,
    suspect_of_feedback,
    suspect_of_prediction,
    text_of,
)
from services.failure_miner.settings import FailureMinerSettings
from services.failure_miner.storage import Store, Wish
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


class Embeds(Protocol):
    """What the handlers need of the sentence encoder."""

    def embed(self, texts: Sequence[str]) -> Vectors: ...


class Handlers:
    def __init__(
        self,
        settings: FailureMinerSettings,
        store: Store,
        embedder: Embeds,
        lake: Lake,
        publisher: EventPublisher,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._store = store
        self._embedder = embedder
        self._lake = lake
        self._publisher = publisher
        self._now = now
        self._tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)
        self._missed: dict[str, datetime] = {}

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        self._tasks = consumers.table(TaskChanged)
        batch, skip = BatchOptions(self._settings.failure_miner_batch), self._store.skip
        consumers.on_batch(PredictionLogged, self.on_predictions, batch, on_skipped=skip)
        consumers.on_batch(FeedbackGiven, self.on_feedback, batch, on_skipped=skip)
        consumers.on_batch(CorrectionSubmitted, self.on_corrections, batch, on_skipped=skip)
        consumers.on(SubjectForgotten, self._store.forget)
        consumers.on(CycleStarted, self.on_cycle_started)

    async def expire_forever(self) -> None:
        """Background: suspects go when their predictions leave the lake."""
        await drop_expired_forever(self._tasks, self._store.expire)

    async def on_predictions(self, deliveries: list[Delivery[PredictionLogged]]) -> None:
        """Keep the suspects among them, and ask people about those, the least confident first."""
        specs = await self._specs(deliveries)
        suspicious = [
            d
            for d in deliveries
            if is_suspect(d.event.confidence.score, specs[d.event.task].failures.confidence_threshold)
        ]
        vectors = await self._embed([text_of(d.event.messages) for d in suspicious])
        found = [suspect_of_prediction(d, vectors[i]) for i, d in enumerate(suspicious)]
        low, questions = Purpose.LOW_CONFIDENCE, []
        for event in (d.event for d in suspicious):
            spec, sure = specs[event.task], event.confidence.score
            if event.task_revision == spec.revision:
                whose = (event.user_hash, event.occurred_at)
                questions.append(question(spec, event.prediction_id, event.messages, event.answer, sure, low, *whose))
        await self._keep_and_ask(found, questions, deliveries, specs)

    async def on_feedback(self, deliveries: list[Delivery[FeedbackGiven]]) -> None:
        """A prediction that a user called wrong becomes a suspect, however sure the model was of it.

        What a forgotten person said is passed over before it is looked up: the lake has nothing of theirs any more.
        Raises DependencyUnavailable while the lake does not have the prediction, InvalidMessage when it was waited for.
        """
        gone = await self._store.forgotten((d.event.task, d.event.user_hash) for d in deliveries)
        negative = {
            d.event.prediction_id: d
            for d in deliveries
            if is_negative(d.event) and not gone.covers(d.event.task, d.event.user_hash, d.event.occurred_at)
        }
        known = await self._store.known(negative) if negative else set()
        looked_up = await self._look_up([d for key, d in negative.items() if key not in known])
        vectors = await self._embed([text_of(answered.messages) for _, answered in looked_up])
        found = [suspect_of_feedback(d, answered, vectors[i]) for i, (d, answered) in enumerate(looked_up)]
        specs = await self._specs([d for d, _ in looked_up])
        questions = [
            question(
                specs[a.task],
                a.prediction_id,
                a.messages,
                a.answer,
                a.confidence,
                Purpose.FEEDBACK,
                a.user_hash,
                a.occurred_at,
            )
            for _, a in looked_up
            if a.task_revision == specs[a.task].revision
        ]
        await self._keep_and_ask(found, questions, deliveries, specs)

    async def on_corrections(self, deliveries: list[Delivery[CorrectionSubmitted]]) -> None:
        """Note what people said. A corrected answer that was no suspect becomes one.

        Of a blind pair nobody here knows which answer was production's: its label counts for suspects we know.
        """
        corrected = {
            d.event.prediction_id: d
            for d in deliveries
            if d.event.label is not None
            and d.event.purpose is not Purpose.DISCORDANT_PAIR
            and not same_answer(d.event.label, d.event.answers[0])
        }
        known = await self._store.known(corrected) if corrected else set()
        fresh = [d for key, d in corrected.items() if key not in known]
        vectors = await self._embed([text_of(d.event.messages) for d in fresh])
        await self._store.correct(deliveries, [suspect_of_correction(d, vectors[i]) for i, d in enumerate(fresh)])

    async def on_cycle_started(self, event: CycleStarted) -> None:
        """Cluster the cycle's suspects into failure modes; say so, or say why not.

        Raises DependencyUnavailable until everything below the fence is in.
        """
        await STEP.run(event, self._store, self._publisher, self._cluster)

    async def _cluster(self, event: CycleStarted) -> FailuresClustered:
        cycle_id = str(event.cycle_id)
        spec = await cycle_spec(event, self._tasks, self._now())
        suspects = await self._store.open_suspects(
            event.task, event.task_revision, event.data_cutoff, event.fence,
            self._settings.failure_miner_max_suspects,
        )  # fmt: skip
        wrong = [s for s in suspects if s.label is None or not same_answer(s.label, s.answer)]
        right = [s for s in suspects if s.label is not None and same_answer(s.label, s.answer)]
        stored = await self._store.modes(event.task, event.task_revision)
        found = await asyncio.to_thread(_group, wrong, stored, cycle_id, spec)
        clustered = FailuresClustered(
            event_id=event_id("failures.clustered", cycle_id),
            occurred_at=self._now(),
            task=event.task,
            task_revision=event.task_revision,
            cycle_id=cycle_id,
            suspects=len(wrong),
            noise=len(wrong) - sum(len(one.members) for one in found),
            modes=tuple(one.mode for one in found),
            data_cutoff=event.data_cutoff,
            fence=event.fence,
        )
        return await self._store.save_clustering(clustered, [*wrong, *right], found)

    async def _keep_and_ask(
        self,
        found: Sequence[Suspect],
        questions: Sequence[LabelRequested],
        deliveries: Sequence[Delivery[Any]],
        specs: Mapping[str, TaskSpec],
    ) -> None:
        """Store first, publish after: a redelivery finds what was granted and publishes the same questions again."""
        today = self._now().astimezone(UTC).date()
        ordered = sorted(questions, key=lambda q: -q.priority)
        wishes = [
            Wish(one.prediction_id, one.task, today, specs[one.task].failures.review_budget_per_day) for one in ordered
        ]
        granted = await self._store.keep(found, wishes, deliveries)
        for one in ordered:
            if one.prediction_id in granted:
                await self._publisher.publish(one)

    async def _look_up(
        self, deliveries: Sequence[Delivery[FeedbackGiven]]
    ) -> list[tuple[Delivery[FeedbackGiven], Answered]]:
        found, missing = [], []
        for one in deliveries:
            day = one.event.occurred_at.astimezone(UTC).date()
            row = await asyncio.to_thread(self._lake.find, one.event.task, one.event.prediction_id, day)
            if row is None:
                missing.append(one.event.prediction_id)
            else:
                found.append((one, row))
                self._missed.pop(one.event.prediction_id, None)
        if missing:
            self._wait_or_give_up(missing)
        return found

    def _wait_or_give_up(self, missing: Sequence[str]) -> NoReturn:
        """From when we first looked, not by the feedback's age: after an outage all is old, and the lake behind us."""
        now, patience = self._now(), timedelta(seconds=self._settings.failure_miner_feedback_patience_seconds)
        self._missed = {key: since for key, since in self._missed.items() if now - since < 2 * patience}
        for prediction_id in missing:  # All of the batch at once: they wait side by side.
            if now - self._missed.setdefault(prediction_id, now) > patience:
                raise InvalidMessage(f"feedback on {prediction_id}, which the lake does not have")
        raise DependencyUnavailable(f"the lake does not have {missing[0]} yet")

    async def _specs(self, deliveries: Sequence[Delivery[Any]]) -> dict[str, TaskSpec]:
        """Each task of a batch as it is now, waited for once, by its newest event."""
        newest = {d.event.task: d.event for d in sorted(deliveries, key=lambda d: d.event.occurred_at)}
        return {task: await current_spec(event, self._tasks, self._now()) for task, event in newest.items()}

    async def _embed(self, texts: Sequence[str]) -> Vectors:
        return await asyncio.to_thread(self._embedder.embed, texts)


def _group(wrong: Sequence[Suspect], stored: Sequence[StoredMode], cycle_id: str, spec: TaskSpec) -> list[FoundMode]:
    """The heavy part of a cycle, in a thread."""
    if not wrong:
        return []
    rules = spec.failures
    labels = recipe.cluster(np.stack([s.embedding for s in wrong]), rules.min_cluster_size, rules.min_samples)
    return describe(wrong, labels.tolist(), stored, cycle_id, rules.same_mode_cosine)
