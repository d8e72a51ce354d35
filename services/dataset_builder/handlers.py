"""Stores corrections and asks for tie-breaks; every clustered cycle becomes a job that builds its dataset."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from functools import partial

from schemas.base import Event, utc_now
from schemas.catalog import topic_of
from schemas.cycles import CycleFinished
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted
from schemas.predictions import PredictionsRolledUp, SubjectForgotten
from schemas.tasks import TaskChanged
from services.dataset_builder.building.carry_over import carry_over
from services.dataset_builder.building.votes import Withdrawals, by_prediction, newest_of_each, third_opinion, votes_of
from services.dataset_builder.job import STEP, BuildResult, delete_texts, job_name, read_questions
from services.dataset_builder.job_input import BuildJob, delete_embeddings
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.storage.corrections import PostgresCorrectionStore
from services.dataset_builder.storage.traffic import PostgresTrafficStore
from shared.cycle_step import current_spec, cycle_spec
from shared.jobs import Job, JobFailure, JobProgress, Jobs
from shared.kafka.clients import end_offsets
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import Publisher
from shared.kafka.resuming import resume_where_stored
from shared.privacy.retention import drop_expired_forever
from shared.storage.erasures import subscribe_erasures

_MAX_CORRECTIONS = 500
"""Stored at once."""
_TRAFFIC_HOURS = 24
"""Of production's answers, that the labels are compared with."""
_READ_SECONDS = 10.0


class Handlers:
    def __init__(
        self,
        settings: DatasetBuilderSettings,
        corrections: PostgresCorrectionStore,
        traffic: PostgresTrafficStore,
        jobs: Jobs,
        publisher: Publisher,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._corrections = corrections
        self._traffic = traffic
        self._jobs = jobs
        self._publisher = publisher
        self._now = now
        self._cache = settings.home / "cache"
        self._tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        self._tasks = consumers.table(TaskChanged, self._corrections.save_revision, on_older=True)
        batch, skip = BatchOptions(_MAX_CORRECTIONS), self._corrections.skip
        # A database that was restored, or made anew, would wait for ever for records that the group has committed.
        resume = resume_where_stored(self._corrections.next_offsets, partial(end_offsets, self._settings))
        consumers.on_batch(CorrectionSubmitted, self.on_corrections, batch, on_skipped=skip, resume=resume)
        consumers.on(PredictionsRolledUp, self.on_rolled_up)
        subscribe_erasures(consumers, self._settings, self._corrections, self.on_forgotten)
        consumers.on(FailuresClustered, self.on_clustered)
        consumers.on(CycleFinished, self.on_finished)

    async def on_rolled_up(self, event: PredictionsRolledUp) -> None:
        """Store how often production gave each label; other answers are what people wrote, and nobody needs them.

        Raises DependencyUnavailable until the tasks are read.
        """
        task = await self._tasks.latest(event.task, _READ_SECONDS)
        if task is not None and task.spec.labels:
            await self._traffic.save_hour(event)

    async def read_tasks(self) -> None:
        """Background, started when the broker answers: read the tasks to the end of their topic."""
        await self._tasks.read_to_end(self._settings)

    async def expire_forever(self) -> None:
        """Delete corrections that are too old to train on, as a background task."""
        await drop_expired_forever(self._tasks, self._corrections.expire, lambda spec: spec.dataset.max_age_days)

    async def on_corrections(self, deliveries: list[Delivery[CorrectionSubmitted]]) -> None:
        """Store corrections; where two reviewers disagree, ask one more, long before a cycle needs the answer."""
        await self._corrections.save(deliveries)
        newest = {d.event.prediction_id: d.event for d in deliveries if d.event.label is not None}
        corrections, withdrawn = await self._corrections.corrections_of(newest), Withdrawals()
        withdrawn.add(corrections)
        for prediction_id, cast in by_prediction(withdrawn.left_of(votes_of(corrections))).items():
            if len(cast) < 2:
                continue
            spec = await current_spec(newest[prediction_id], self._tasks, self._now())
            holding, _ = carry_over(cast, spec, {})
            question = third_opinion(newest_of_each(holding)[0], spec, {})
            if question is not None:
                await self._publisher.publish(question)
        await self._corrections.advance(deliveries)

    async def on_forgotten(self, event: SubjectForgotten) -> None:
        """Forget a person, and the vectors of the task's texts, some of which are theirs: a build makes them again."""
        await self._corrections.forget(event)
        await asyncio.to_thread(delete_embeddings, self._cache, event.task)

    async def on_clustered(self, event: FailuresClustered) -> None:
        """Submit the build of the cycle's dataset. Raises DependencyUnavailable until its inputs are stored."""
        await STEP.run(event, self._corrections, self._publisher, self._submit, self._corrections.save_outcome)

    async def _submit(self, event: FailuresClustered) -> None:
        settings = self._settings
        job = BuildJob(
            cycle=event.without(lambda _: True),  # A job's folder stays: no exemplar of an erased person in it.
            spec=await cycle_spec(event, self._tasks, self._now()),
            artifacts=settings.artifacts_uri,
            cache=self._cache,
            slots_folder=settings.slots_folder,
            embedder=settings.embedder_folder,
            secrets_folder=settings.secrets_folder,
            models_folder=settings.models_folder,
            traffic_hours=_TRAFFIC_HOURS,
        )
        self._jobs.submit(job_name(event), job, event.cycle_id)

    async def on_finished(self, event: CycleFinished) -> None:
        """Note whether anything came of the cycle's version, and end its build if a person has ended the cycle."""
        if event.outcome == "failed" and event.cycle_id is not None:
            for job in await self._jobs.end(event.cycle_id, lambda job: _cycle(job).cycle_id == event.cycle_id):
                delete_texts(job.folder)
        await self._corrections.save_end(event)

    async def follow_jobs(self) -> None:
        """Background: run the jobs and publish their progress, questions and outcomes."""
        await self._jobs.watch(self.on_done, self.on_failed, self.on_progress)

    async def on_done(self, job: Job, result: bytes) -> None:
        """Publish what people are asked about the dataset, then the outcome that the job has stored."""
        await self._announce(job, BuildResult.model_validate_json(result).outcome)

    async def on_failed(self, job: Job, failure: JobFailure) -> None:
        """Store and publish why there is no dataset: the process died, or the database was away for too long.

        A process that came as far as to store the outcome, and then failed, failed at nothing but to say so.
        """
        cycle = _cycle(job)
        if (stored := await self._corrections.outcome(cycle.cycle_id or "")) is not None:
            await self._announce(job, stored)
            return
        failed = STEP.failed(cycle, failure.reason, failure.way_out)
        await self._corrections.save_outcome(failed)
        await self._publisher.publish(failed)
        delete_texts(job.folder)

    async def _announce(self, job: Job, outcome: Event) -> None:
        for question in read_questions(job):
            await self._publisher.publish(question)
        await self._publisher.publish(outcome)
        delete_texts(job.folder)

    async def on_progress(self, job: Job, progress: JobProgress) -> None:
        await self._publisher.publish(STEP.progressed(_cycle(job), job, progress))


def _cycle(job: Job) -> FailuresClustered:
    return BuildJob.model_validate_json(job.spec).cycle
