"""Stores suspects and asks people about samples of what arrives; clusters suspects into failure modes on a cycle."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from schemas.base import utc_now
from schemas.catalog import topic_of
from schemas.cycles import CycleStarted
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted
from schemas.predictions import FeedbackGiven, PredictionLogged, SubjectForgotten
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.failure_miner import recipe
from services.failure_miner.domain import (
    Suspect,
    called_wrong,
    chosen_predictions,
    confirms,
    corrected_prediction,
    counted_since,
    doubtful_predictions,
    embedded_text,
    is_negative,
    is_same,
    looked_up_prediction,
    review_question,
    seen_by_sampling,
    suspect_of,
    was_interrupted,
)
from services.failure_miner.modes import FoundMode, StoredMode, describe_modes, modes_for_event
from services.failure_miner.sampling import FEEDBACK, ReviewQuestion, Sighting, Sightings
from services.failure_miner.storage import PostgresSuspectStore
from shared.answers import form_of_kind
from shared.cycle_step import CycleStep, current_spec, cycle_spec
from shared.identity import event_id
from shared.kafka.clients import end_offsets
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import Publisher
from shared.kafka.resuming import resume_where_stored
from shared.model.embedding import Embedder
from shared.privacy.retention import drop_expired_forever
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.erasures import subscribe_erasures
from shared.storage.failure_modes import publish_modes
from shared.storage.predictions import AnsweredPrediction, AwaitedPredictions, LakePredictions

NAME = "failure_miner"
_MIN_SAMPLES = 2
"""HDBSCAN's: more means more noise and denser modes. Two found the purest modes on Banking77 and CLINC150."""
_SAME_MODE_COSINE = 0.85
"""Centroids this similar from week to week are of the same failure mode."""
_MAX_PREDICTIONS = 256
"""Embedded at once."""
_MAX_SUSPECTS = 20_000
"""That a cycle clusters; the newest are taken."""
CORRECTIONS = topic_of(CorrectionSubmitted).name
INPUTS = (PredictionLogged, FeedbackGiven, CorrectionSubmitted, SubjectForgotten)
STEP = CycleStep(NAME, "failures", inputs=tuple(topic_of(event).name for event in INPUTS))

_COUNTED = 50_000
"""Predictions that are remembered as counted: some batches of each partition."""

logger = logging.getLogger(__name__)


class Handlers:
    def __init__(
        self,
        settings: Settings,
        suspects: PostgresSuspectStore,
        embedder: Embedder,
        predictions: LakePredictions,
        artifacts: ArtifactStore,
        publisher: Publisher,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._suspects = suspects
        self._embedder = embedder
        self._predictions = AwaitedPredictions(predictions, now)
        self._artifacts = artifacts
        self._publisher = publisher
        self._now = now
        self._tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)
        # While questions cannot be published, their predictions come again, of one partition after the other.
        self._counted: OrderedDict[tuple[str, bool], None] = OrderedDict()

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        self._tasks = consumers.table(TaskChanged)
        batch, skip = BatchOptions(_MAX_PREDICTIONS), self._suspects.skip
        # A database that was restored, or made anew, would wait for ever for records that the group has committed.
        resume = resume_where_stored(self._suspects.next_offsets, partial(end_offsets, self._settings))
        consumers.on_batch(PredictionLogged, self.on_predictions, batch, on_skipped=skip, resume=resume)
        consumers.on_batch(FeedbackGiven, self.on_feedback, batch, on_skipped=skip, resume=resume)
        consumers.on_batch(CorrectionSubmitted, self.on_corrections, batch, on_skipped=skip, resume=resume)
        subscribe_erasures(consumers, self._settings, self._suspects, self._suspects.forget)
        consumers.on(CycleStarted, self.on_cycle_started)

    async def read_tasks(self) -> None:
        """Background, started when the broker answers: read the tasks to the end of their topic."""
        await self._tasks.read_to_end(self._settings)

    async def expire_forever(self) -> None:
        """Delete suspects when their predictions leave the lake, as a background task."""
        await drop_expired_forever(self._tasks, self._suspects.expire)

    async def on_predictions(self, deliveries: list[Delivery[PredictionLogged]]) -> None:
        """Store the suspects among them, and ask people about the predictions that the samples draw."""
        specs = await self._specs(deliveries)
        suspicious, sightings = await asyncio.to_thread(_look_at, deliveries, specs)
        questions = await self._save(suspicious, sightings, specs)
        for prediction in await asyncio.to_thread(_drawn_predictions, deliveries, questions):
            for question in questions[prediction.prediction_id]:
                await self._publisher.publish(review_question(specs[prediction.task], prediction, question))
        await self._suspects.advance(deliveries)

    async def on_feedback(self, deliveries: list[Delivery[FeedbackGiven]]) -> None:
        """Make a suspect of each prediction that a user called wrong, however confident, and ask people about it.

        Where they are asked already, the question is published again only with what the user wrote. So is the question
        of a complaint: this may be its redelivery, because the question was stored and then not published.
        An answer that was broken off is none: the user saw only a part of it. Nor is one that the user's text confirms.
        Feedback of an erased person is dropped before it is looked up: the lake no longer has their predictions.
        Raises DependencyUnavailable while the lake does not have a prediction, InvalidMessage after waiting for it.
        """
        erased = await self._suspects.erased((d.event.task, d.event.user_hash) for d in deliveries)
        wrong = [
            d
            for d in deliveries
            if is_negative(d.event) and not erased.covers(d.event.task, d.event.user_hash, d.event.occurred_at)
        ]
        wrong.sort(key=lambda delivery: bool(delivery.event.text))  # A text says more than a thumb down.
        negative: dict[str, list[Delivery[FeedbackGiven]]] = {}
        for delivery in wrong:
            negative.setdefault(delivery.event.prediction_id, []).append(delivery)
        asked = await self._suspects.asked_otherwise(negative) if negative else set()
        nothing_new = {prediction_id for prediction_id in asked if not negative[prediction_id][-1].event.text}
        known = await self._suspects.stored_ids(nothing_new) if nothing_new else set()
        wanted = {prediction_id: given for prediction_id, given in negative.items() if prediction_id not in known}
        in_lake = await self._predictions.look_up([given[-1] for given in wanted.values()])
        specs = await self._specs([delivery for given in wanted.values() for delivery in given])
        found = []
        for prediction_id, given in wanted.items():
            prediction = in_lake[prediction_id]
            spec = specs[prediction.task]
            denied = [d for d in given if not confirms(d.event, prediction.answer, spec)]
            if denied and not was_interrupted(prediction.answer):
                found.append((looked_up_prediction(prediction), denied[-1]))
        sightings = [s for prediction, _ in found for s in called_wrong(prediction, specs[prediction.task])]
        questions = await self._save(found, sightings, specs)
        for prediction, delivery in found:
            if prediction.prediction_id in nothing_new:
                continue
            for question in questions.get(prediction.prediction_id, ()):
                asked_again = review_question(specs[prediction.task], prediction, question, delivery.event)
                await self._publisher.publish(asked_again)
        await self._suspects.advance(deliveries)

    async def on_corrections(self, deliveries: list[Delivery[CorrectionSubmitted]]) -> None:
        """Store people's labels. A corrected answer that is no suspect becomes one.

        The correction of a blind pair, or of its tie-break, does not say which of two answers was production's, and
        that of an imported row is about none: those only label stored suspects.
        """
        kinds = {task: await self._kind(task) for task in {d.event.task for d in deliveries}}
        corrected = {
            d.event.prediction_id: d
            for d in deliveries
            if d.event.label is not None
            and len(d.event.answers) == 1
            and not form_of_kind(kinds[d.event.task]).same(d.event.label, d.event.answers[0].plain)
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
            _MAX_SUSPECTS,
        )  # fmt: skip
        wrong = await self._comparable([s for s in suspects if not _is_right(s, spec)])
        right = [s for s in suspects if _is_right(s, spec)]
        stored = await self._suspects.modes(event.task, event.task_revision)
        found = await asyncio.to_thread(_find_modes, wrong, stored, cycle_id, spec)
        members = await self._suspects.labelled_members(event.task, event.task_revision)
        members |= {wrong[i].prediction_id: mode.mode.mode_id for mode in found for i in mode.members}
        modes = [mode.mode for mode in found]
        short = modes_for_event(modes)
        since = counted_since(spec, event.data_cutoff)
        drawn, share = await self._suspects.sample_figures(event.task, event.data_cutoff, since)
        clustered = FailuresClustered(
            event_id=event_id("failures.clustered", cycle_id),
            occurred_at=self._now(),
            task=event.task,
            task_revision=event.task_revision,
            cycle_id=cycle_id,
            suspects=len(wrong),
            noise=len(wrong) - sum(len(mode.members) for mode in found),
            modes=short,
            modes_left_out=len(modes) - len(short),
            uri=await asyncio.to_thread(publish_modes, self._artifacts, event.task, modes, members),
            questions_drawn=drawn,
            drawn_since=since,
            audit_share=share,
            data_cutoff=event.data_cutoff,
            fence=event.fence,
        )
        return await self._suspects.save_clustering(clustered, [*wrong, *right], found)

    async def _comparable(self, suspects: list[Suspect]) -> list[Suspect]:
        """Return suspects with vectors of one length: those of another encoder, which was set before, are made anew."""
        if len({len(suspect.embedding) for suspect in suspects}) < 2:
            return suspects
        logger.warning("the sentence encoder was changed: the %d waiting suspects are embedded again", len(suspects))
        vectors = await asyncio.to_thread(self._embedder.embed, [suspect.text for suspect in suspects])
        return [replace(suspect, embedding=vector) for suspect, vector in zip(suspects, vectors, strict=True)]

    async def _save(
        self,
        found: Sequence[tuple[AnsweredPrediction, Delivery[Any]]],
        sightings: Sequence[Sighting],
        specs: Mapping[str, TaskSpec],
    ) -> dict[str, list[ReviewQuestion]]:
        """Store suspects and draw questions, by prediction: a redelivery draws, and publishes, the same again."""
        rules = {task: spec.failures for task, spec in specs.items()}
        keys = [(sighting.prediction_id, sighting.stratum == FEEDBACK) for sighting in sightings]
        counted = [replace(s, is_new=key not in self._counted) for s, key in zip(sightings, keys, strict=True)]
        seen = Sightings(counted, rules, self._now().astimezone(UTC).date())
        drawn: dict[str, list[ReviewQuestion]] = {}
        for question in await self._suspects.save(await self._embed(found), seen):
            drawn.setdefault(question.prediction_id, []).append(question)
        self._counted.update(dict.fromkeys(keys))
        while len(self._counted) > _COUNTED:
            self._counted.popitem(last=False)
        return drawn

    async def _specs(self, deliveries: Sequence[Delivery[Any]]) -> dict[str, TaskSpec]:
        """Return the current spec of each task of a batch, looked up once by the task's newest event."""
        newest = {d.event.task: d.event for d in sorted(deliveries, key=lambda d: d.event.occurred_at)}
        return {task: await current_spec(event, self._tasks, self._now()) for task, event in newest.items()}

    async def _kind(self, task: str) -> TaskKind:
        """Return the kind that decides whether two answers say the same. Those of a task that nobody applied are texts.

        A correction may be of an earlier revision, so none is waited for.
        """
        return TaskKind.GENERATION if self._tasks.is_missing(task) else (await self._tasks.wait_for(task)).spec.kind

    async def _embed(self, found: Sequence[tuple[AnsweredPrediction, Delivery[Any]]]) -> list[Suspect]:
        """Make suspects of predictions, each with the event that made it one."""
        texts = [embedded_text(prediction.call) for prediction, _ in found]
        distinct = list(dict.fromkeys(texts))  # The answers of a request share their conversation.
        vectors = dict(zip(distinct, await asyncio.to_thread(self._embedder.embed, distinct), strict=True))
        return [
            suspect_of(prediction, delivery, vectors[text])
            for text, (prediction, delivery) in zip(texts, found, strict=True)
        ]


def _look_at(
    deliveries: Sequence[Delivery[PredictionLogged]], specs: Mapping[str, TaskSpec]
) -> tuple[list[tuple[AnsweredPrediction, Delivery[Any]]], list[Sighting]]:
    """Return a batch's suspects, and what sampling sees of it. It takes a while where calls are long."""
    suspicious: list[tuple[AnsweredPrediction, Delivery[Any]]] = []
    sightings: list[Sighting] = []
    for delivery in deliveries:
        spec = specs[delivery.event.task]
        doubtful = doubtful_predictions(delivery.event, spec.failures)
        suspicious += [(prediction, delivery) for prediction in doubtful]
        sightings += seen_by_sampling(delivery.event, spec)
    return suspicious, sightings


def _drawn_predictions(
    deliveries: Sequence[Delivery[PredictionLogged]], questions: Mapping[str, object]
) -> list[AnsweredPrediction]:
    """Return the predictions of a batch about which there are questions. It takes a while where calls are long."""
    drawn = (chosen_predictions(d.event, lambda answer: answer.prediction_id in questions) for d in deliveries)
    return [prediction for predictions in drawn for prediction in predictions]


def _is_right(suspect: Suspect, spec: TaskSpec) -> bool:
    """Return True if somebody said what the answer should have been, and it is that."""
    return suspect.label is not None and is_same(suspect.label, suspect.answer, spec)


def _find_modes(
    wrong: Sequence[Suspect], stored: Sequence[StoredMode], cycle_id: str, spec: TaskSpec
) -> list[FoundMode]:
    """Cluster suspects and describe the clusters. Blocking: call it in a thread."""
    if not wrong:
        return []
    clusters = recipe.cluster(np.stack([s.embedding for s in wrong]), spec.failures.min_cluster_size, _MIN_SAMPLES)
    return describe_modes(wrong, clusters.tolist(), stored, cycle_id, _SAME_MODE_COSINE)
