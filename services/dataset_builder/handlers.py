"""Events in: corrections kept, third opinions asked. A clustered cycle in: a data set out, or why there is none."""

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
from services.dataset_builder.domain import Dataset, build_dataset, third_opinion, votes_of
from services.dataset_builder.gates import judge, shortfall, way_out
from services.dataset_builder.publishing import Artifacts, publish_dataset
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.storage import Store
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
        store: Store,
        artifacts: Artifacts,
        publisher: EventPublisher,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._store = store
        self._artifacts = artifacts
        self._publisher = publisher
        self._now = now
        self._tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        self._tasks = consumers.table(TaskChanged)
        batch, skip = BatchOptions(self._settings.dataset_builder_batch), self._store.skip
        consumers.on_batch(CorrectionSubmitted, self.on_corrections, batch, on_skipped=skip)
        consumers.on(PredictionsRolledUp, self._store.put_traffic)
        consumers.on(SubjectForgotten, self._store.forget)
        consumers.on(FailuresClustered, self.on_clustered)

    async def expire_forever(self) -> None:
        """Background: corrections go when they are too old to train on."""
        await drop_expired_forever(self._tasks, self._store.expire, lambda spec: spec.dataset.max_age_days)

    async def on_corrections(self, deliveries: list[Delivery[CorrectionSubmitted]]) -> None:
        """Keep what people said; where two disagree, ask a third, long before the cycle needs the answer."""
        await self._store.keep(deliveries)
        touched = {d.event.prediction_id for d in deliveries if d.event.label is not None}
        for votes in votes_of(await self._store.on_prediction(touched)).values():
            if len(votes) < 2:
                continue
            spec = await current_spec(votes[-1], self._tasks, self._now())
            question = third_opinion(votes, spec)
            if question is not None and votes[0].task_revision == spec.revision:
                await self._publisher.publish(question)

    async def on_clustered(self, event: FailuresClustered) -> None:
        """Build the cycle's data set. Raises DependencyUnavailable until all corrections below the fence are in."""
        await STEP.run(event, self._store, self._publisher, self._build, self._store.save_outcome)

    async def _build(self, event: FailuresClustered) -> Event:
        spec = await cycle_spec(event, self._tasks, self._now())
        hours = self._settings.dataset_builder_traffic_hours
        traffic = await self._store.traffic(event.task, event.task_revision, hours)
        corrections, dataset = await self._dataset(event, spec)
        gates = judge(dataset, spec, traffic)
        if not all(gate.passed for gate in gates):
            raise StepImpossible(
                f"the data set of {len(corrections)} corrections did not pass: {shortfall(gates)}", way_out(gates, spec)
            )
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
        """The cycle's corrections and what they make. Who is forgotten while it is built is not in it."""
        corrections = await self._store.below(event.task, event.task_revision, event.fence)
        while True:
            dataset = await asyncio.to_thread(build_dataset, corrections, spec)
            still = await self._store.below(event.task, event.task_revision, event.fence)
            if len(still) == len(corrections):  # Below the fence nothing comes, it only goes.
                return corrections, dataset
            corrections = still
