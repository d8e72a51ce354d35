"""Kafka handlers of the evaluator: every trained adapter becomes an evaluation job, and one that waited another.

consumes  adapters.trained · evaluations.requested · rollouts.changed (as a table, and for the promotions) ·
          cycles.finished
produces  adapters.evaluated · steps.progressed · steps.failed
"""

from __future__ import annotations

from schemas.adapters import AdapterEvaluated, AdapterTrained, EvaluationRequested
from schemas.cycles import CycleFinished
from schemas.rollouts import RolloutChanged, Stage
from services.evaluator.domain import Candidate, job_name, production_of
from services.evaluator.golden_history import record_promotion
from services.evaluator.job_input import EvaluationJob
from services.evaluator.settings import EvaluatorSettings
from shared.cycle_step import CycleStep
from shared.identity import event_id
from shared.jobs import Job, JobFailure, JobProgress, Jobs
from shared.kafka.consumers import Consumers
from shared.kafka.latest_by_key import READ_SECONDS, LatestByKey
from shared.kafka.publisher import Publisher
from shared.storage.artifacts import ArtifactStore
from shared.threads import in_thread

STEP = CycleStep("evaluator", "evaluation")
_TIMEOUT_SECONDS = 60.0
"""A slower answer counts as failed."""


class Handlers:
    def __init__(
        self,
        settings: EvaluatorSettings,
        jobs: Jobs,
        publisher: Publisher,
        rollouts: LatestByKey[RolloutChanged],
        table_seconds: float = READ_SECONDS,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._publisher = publisher
        self._rollouts = rollouts
        self._table_seconds = table_seconds

    def subscribe(self, consumers: Consumers) -> None:
        """Register the handlers on the consumers that `rollouts` is a table of."""
        consumers.on(AdapterTrained, self.on_adapter)
        consumers.on(EvaluationRequested, self.on_requested)
        consumers.on(RolloutChanged, self.on_rollout)
        consumers.on(CycleFinished, self.on_finished)

    async def follow_jobs(self) -> None:
        """Background: run the jobs and publish their progress and results."""
        await self._jobs.watch(self.on_done, self.on_failed, self.on_progress)

    async def on_adapter(self, event: AdapterTrained) -> None:
        """Submit the evaluation against the adapter that serves now.

        Raises DependencyUnavailable until the rollouts are read to their end: an opponent that is not known yet is
        not the base model.
        """
        production = production_of(event, await self._rollouts.latest(event.task, self._table_seconds))
        self._submit(event, production)

    async def on_requested(self, event: EvaluationRequested) -> None:
        """Submit the evaluation of a candidate whose turn has come, against the adapter that the deployer names."""
        self._submit(event, event.against)

    async def on_rollout(self, event: RolloutChanged) -> None:
        """Record a promotion: what the adapter got right of the golden set is what later candidates are measured by.

        Raises DependencyUnavailable while the artifact store is away.
        """
        if event.stage is Stage.PROMOTED and event.primary_adapter is not None:
            store = ArtifactStore(self._settings.artifacts_uri, self._settings.home / "cache")
            await in_thread(record_promotion, store, event.task, event.primary_adapter)

    async def on_finished(self, event: CycleFinished) -> None:
        """End the evaluation of a cycle that failed: a person has ended it. A candidate that waits for its turn is not
        ended so, and its evaluation goes on."""

        def is_meant(job: Job) -> bool:
            trained = _trained(job)
            return trained.cycle_id == event.cycle_id and isinstance(trained, AdapterTrained)

        if event.outcome == "failed" and event.cycle_id is not None:
            await self._jobs.end(event.cycle_id, is_meant)

    def _submit(self, event: Candidate, production: str | None) -> None:
        settings = self._settings
        job = EvaluationJob(
            trained=event,
            production=production,
            vllm=settings.inference_urls,
            models=settings.model_urls,
            artifacts=settings.artifacts_uri,
            cache=settings.home / "cache",
            slots_folder=settings.slots_folder,
            slots=1,  # Evaluations queue: each already asks as much at a time as the pool is said to bear.
            concurrency=settings.evaluator_concurrency,
            timeout_seconds=_TIMEOUT_SECONDS,
            max_rank=settings.vllm_max_lora_rank,
            embedder=settings.embedder_folder,
            lake=settings.lake_uri,
            prices_file=settings.prices_file,
        )
        cycle_id = event.cycle_id if isinstance(event, AdapterTrained) else None
        self._jobs.submit(job_name(event, production), job, cycle_id)

    async def on_done(self, job: Job, result: bytes) -> None:
        await self._publisher.publish(AdapterEvaluated.model_validate_json(result))

    async def on_failed(self, job: Job, failure: JobFailure) -> None:
        await self._publisher.publish(
            STEP.failed(_trained(job), failure.reason, failure.way_out, event_id("evaluation failed", job.name))
        )

    async def on_progress(self, job: Job, progress: JobProgress) -> None:
        await self._publisher.publish(STEP.progressed(_trained(job), job, progress))


def _trained(job: Job) -> Candidate:
    return EvaluationJob.model_validate_json(job.spec).trained
