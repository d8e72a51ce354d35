"""Stores corrections and asks for tie-breaks; builds a clustered cycle's dataset, or publishes why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from schemas.base import Event, utc_now
from schemas.catalog import topic_of
from schemas.datasets import DatasetBuilt, RejectedCount
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted
from schemas.predictions import PredictionsRolledUp, SubjectForgotten
from schemas.tasks import TaskChanged, TaskSpec
from services.dataset_builder.domain import Dataset, build_dataset, tie_break_question, votes_by_prediction
from services.dataset_builder.gates import describe_failed_gates, evaluate_gates, way_out
from services.dataset_builder.publishing import ArtifactWriter, publish_dataset
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.storage import CorrectionStore, TrafficStore
from shared.cycle_step import CycleStep, current_spec, cycle_spec
from shared.errors import StepImpossible
from shared.identity import event_id
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import EventPublisher
from shared.privacy.retention import drop_expired_forever

NAME = "dataset_builder"
STEP = CycleStep(NAME, "dataset", inputs=(topic_of(CorrectionSubmitted).name,))


class Handlers:
    def __init__(
        self,
        settings: DatasetBuilderSettings,
        corrections: CorrectionStore,
        traffic: TrafficStore,
        artifacts: ArtifactWriter,
        publisher: EventPublisher,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._corrections = corrections
        self._traffic = traffic
        self._artifacts = artifacts
        self._publisher = publisher
        self._now = now
        self._tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        self._tasks = consumers.table(TaskChanged)
        batch, skip = BatchOptions(self._settings.dataset_builder_batch), self._corrections.skip
        consumers.on_batch(CorrectionSubmitted, self.on_corrections, batch, on_skipped=skip)
        consumers.on(PredictionsRolledUp, self._traffic.save_hour)
        consumers.on(SubjectForgotten, self._corrections.forget)
        consumers.on(FailuresClustered, self.on_clustered)

    async def expire_forever(self) -> None:
        """Delete corrections that are too old to train on, as a background task."""
        await drop_expired_forever(self._tasks, self._corrections.expire, lambda spec: spec.dataset.max_age_days)

    async def on_corrections(self, deliveries: list[Delivery[CorrectionSubmitted]]) -> None:
        """Store corrections; where two reviewers disagree, ask one more, long before a cycle needs the answer."""
        await self._corrections.save(deliveries)
        labelled = {d.event.prediction_id for d in deliveries if d.event.label is not None}
        for votes in votes_by_prediction(await self._corrections.corrections_of(labelled)).values():
            if len(votes) < 2:
                continue
            spec = await current_spec(votes[-1], self._tasks, self._now())
            question = tie_break_question(votes, spec)
            if question is not None and votes[0].task_revision == spec.revision:
                await self._publisher.publish(question)

    async def on_clustered(self, event: FailuresClustered) -> None:
        """Build the cycle's dataset. Raises DependencyUnavailable until all corrections below the fence are stored."""
        await STEP.run(event, self._corrections, self._publisher, self._build, self._corrections.save_outcome)

    async def _build(self, event: FailuresClustered) -> Event:
        spec = await cycle_spec(event, self._tasks, self._now())
        hours = self._settings.dataset_builder_traffic_hours
        traffic = await self._traffic.answer_counts(event.task, event.task_revision, hours)
        corrections, dataset = await self._dataset(event, spec)
        gates = evaluate_gates(dataset, spec, traffic)
        if not all(gate.passed for gate in gates):
            reason = f"the dataset of {len(corrections)} corrections did not pass: {describe_failed_gates(gates)}"
            raise StepImpossible(reason, way_out(gates, spec))
        now = self._now()
        dataset_id, uri = await asyncio.to_thread(publish_dataset, self._artifacts, dataset, spec, event, gates, now)
        return DatasetBuilt(
            event_id=event_id("datasets.built", event.cycle_id),
            occurred_at=now,
            task=event.task,
            task_revision=event.task_revision,
            cycle_id=event.cycle_id,
            dataset_id=dataset_id,
            uri=uri,
            train_examples=len(dataset.train),
            eval_examples=len(dataset.eval),
            rejected=tuple(RejectedCount(reason=r, count=n) for r, n in dataset.rejected_by_reason().items()),
            gates=gates,
            data_cutoff=event.data_cutoff,
            spec=spec,
        )

    async def _dataset(self, event: FailuresClustered, spec: TaskSpec) -> tuple[list[CorrectionSubmitted], Dataset]:
        """Return the cycle's corrections and their dataset, without people who were erased during the build."""
        below = (event.task, event.task_revision, event.fence)
        while True:
            corrections = await self._corrections.corrections_below(*below)
            dataset = await asyncio.to_thread(build_dataset, corrections, spec)
            if await self._corrections.count_below(*below) == len(corrections):  # Below it they only ever disappear.
                return corrections, dataset
