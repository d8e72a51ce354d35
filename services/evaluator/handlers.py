"""Kafka handlers of the evaluator: every trained adapter becomes an evaluation job.

consumes  adapters.trained · rollouts.changed (as a table)
produces  adapters.evaluated · steps.progressed · steps.failed
"""

from __future__ import annotations

from schemas.adapters import AdapterEvaluated, AdapterTrained
from schemas.cycles import StepProgressed
from schemas.rollouts import RolloutChanged
from services.evaluator.domain import job_name, production_of
from services.evaluator.job import EvaluationJob
from services.evaluator.settings import EvaluatorSettings
from shared.cycle_step import CycleStep
from shared.errors import DependencyUnavailable
from shared.identity import event_id
from shared.jobs import Job, JobFailure, JobProgress, Jobs
from shared.kafka.consumers import Consumers
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import EventPublisher

STEP = CycleStep("evaluator", "evaluation")


class Handlers:
    def __init__(
        self,
        settings: EvaluatorSettings,
        jobs: Jobs,
        publisher: EventPublisher,
        rollouts: LatestByKey[RolloutChanged],
        table_seconds: float = 3.0,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._publisher = publisher
        self._rollouts = rollouts
        self._table_seconds = table_seconds

    def subscribe(self, consumers: Consumers) -> None:
        """Register the handlers on the consumers that `rollouts` is a table of."""
        consumers.on(AdapterTrained, self.on_adapter)

    async def follow_jobs(self) -> None:
        """Background: run the jobs and publish their progress and results."""
        await self._jobs.watch(self.on_done, self.on_failed, self.on_progress)

    async def on_adapter(self, event: AdapterTrained) -> None:
        production = production_of(event, await self._rollout(event.task))
        settings = self._settings
        job = EvaluationJob(
            trained=event,
            production=production,
            vllm=settings.inference_urls,
            artifacts=settings.artifacts_uri,
            cache=settings.home / "cache",
            slots_folder=settings.slots_folder,
            slots=settings.evaluator_slots,
            concurrency=settings.evaluator_concurrency,
            timeout_seconds=settings.evaluator_timeout_seconds,
        )
        self._jobs.submit(job_name(event, production), job)

    async def _rollout(self, task: str) -> RolloutChanged | None:
        """Return the task's last rollout, or None. Waits a little, because the table may still be loading."""
        try:
            return await self._rollouts.wait_for(task, self._table_seconds)
        except DependencyUnavailable:
            return None

    async def on_done(self, job: Job, result: bytes) -> None:
        await self._publisher.publish(AdapterEvaluated.model_validate_json(result))

    async def on_failed(self, job: Job, failure: JobFailure) -> None:
        await self._publisher.publish(
            STEP.failed(_trained(job), failure.reason, failure.way_out, event_id("evaluation failed", job.name))
        )

    async def on_progress(self, job: Job, progress: JobProgress) -> None:
        trained = _trained(job)
        await self._publisher.publish(
            StepProgressed(
                event_id=event_id("evaluation progressed", job.name, progress.done, progress.message),
                task=trained.task,
                task_revision=trained.task_revision,
                cycle_id=trained.cycle_id,
                step="evaluation",
                done=progress.done,
                total=progress.total,
                message=progress.message[:500],
            )
        )


def _trained(job: Job) -> AdapterTrained:
    return EvaluationJob.model_validate_json(job.spec).trained
