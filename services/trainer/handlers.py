"""Kafka handlers of the trainer: every built dataset becomes a training job.

consumes  datasets.built · cycles.finished · rollouts.changed (as a table: which adapter serves)
produces  adapters.trained · steps.progressed · steps.failed
"""

from __future__ import annotations

from schemas.adapters import AdapterTrained
from schemas.cycles import CycleFinished
from schemas.datasets import DatasetBuilt
from schemas.rollouts import RolloutChanged
from services.trainer.domain import check_servable, job_name
from services.trainer.job import TrainingJob, delete_weights
from services.trainer.settings import TrainerSettings
from shared.cycle_step import CycleStep
from shared.errors import StepImpossible
from shared.identity import event_id
from shared.jobs import Job, JobFailure, JobProgress, Jobs
from shared.kafka.consumers import Consumers
from shared.kafka.latest_by_key import READ_SECONDS, LatestByKey
from shared.kafka.publisher import Publisher

STEP = CycleStep("trainer", "training")


class Handlers:
    def __init__(
        self, settings: TrainerSettings, jobs: Jobs, publisher: Publisher, rollouts: LatestByKey[RolloutChanged]
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._publisher = publisher
        self._rollouts = rollouts

    def subscribe(self, consumers: Consumers) -> None:
        consumers.on(DatasetBuilt, self.on_dataset)
        consumers.on(CycleFinished, self.on_finished)

    async def follow_jobs(self) -> None:
        """Background: run the jobs and publish their progress and results."""
        await self._jobs.watch(self.on_done, self.on_failed, self.on_progress)

    async def on_dataset(self, event: DatasetBuilt) -> None:
        """Submit the job. Raises DependencyUnavailable until it is known which adapter it goes on from."""
        name = job_name(event)
        try:
            check_servable(event.spec, self._settings.vllm_max_lora_rank)
        except StepImpossible as error:
            await self._publish_failure(event, name, JobFailure(reason=error.reason, way_out=error.way_out))
            return
        serving = None
        if event.spec.training.start_from == "last":
            rollout = await self._rollouts.latest(event.task, READ_SECONDS)
            serving = None if rollout is None else rollout.primary_adapter
        job = training_job(event, self._settings, serving)
        self._jobs.submit(name, job, event.cycle_id)

    async def on_finished(self, event: CycleFinished) -> None:
        """End the training of a cycle that failed: a person has ended it, and its lease is for the next one.

        Its dataset may be read after its end: the topics have no order between them.
        """
        if event.outcome == "failed" and event.cycle_id is not None:
            for job in await self._jobs.end(event.cycle_id, lambda job: _dataset(job).cycle_id == event.cycle_id):
                delete_weights(job.folder)

    async def on_done(self, job: Job, result: bytes) -> None:
        await self._publisher.publish(AdapterTrained.model_validate_json(result))
        delete_weights(job.folder)

    async def on_failed(self, job: Job, failure: JobFailure) -> None:
        await self._publish_failure(_dataset(job), job.name, failure)
        delete_weights(job.folder)

    async def on_progress(self, job: Job, progress: JobProgress) -> None:
        await self._publisher.publish(STEP.progressed(_dataset(job), job, progress))

    async def _publish_failure(self, dataset: DatasetBuilt, job: str, failure: JobFailure) -> None:
        await self._publisher.publish(
            STEP.failed(dataset, failure.reason, failure.way_out, event_id("training failed", job))
        )


def training_job(dataset: DatasetBuilt, settings: TrainerSettings, serving: str | None) -> TrainingJob:
    """The job that trains on a data set, in a cycle or by hand. `serving`: the adapter that serves the task now."""
    return TrainingJob(
        dataset=dataset,
        models_folder=settings.models_folder,
        artifacts=settings.artifacts_uri,
        cache=settings.home / "cache",
        slots_folder=settings.slots_folder,
        slots=0 if settings.trainer_ray else settings.trainer_slots,  # Ray has its own.
        max_rank=settings.vllm_max_lora_rank,
        threads=settings.trainer_threads,
        trackers=settings.trackers,
        prices_file=settings.prices_file,
        serving=serving,
        fsdp=settings.trainer_fsdp,
    )


def _dataset(job: Job) -> DatasetBuilt:
    return TrainingJob.model_validate_json(job.spec).dataset
