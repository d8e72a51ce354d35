"""What every step of a cycle does alike: await its inputs, know its task, publish its outcome or why there is none."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar
from uuid import UUID

from schemas.base import Event
from schemas.catalog import topic_of
from schemas.cycles import CycleStarted, PartitionFence, Step, StepFailed, StepProgressed
from schemas.failures import FailuresClustered
from schemas.tasks import TaskChanged, TaskSpec
from shared.errors import DependencyUnavailable, InvalidMessage, StepImpossible, StepSkipped
from shared.identity import event_id
from shared.jobs import Job, JobProgress

if TYPE_CHECKING:  # The process of a job needs no client of Kafka, which takes longer to import than all else here.
    from shared.kafka.latest_by_key import LatestByKey
    from shared.kafka.publisher import Publisher

logger = logging.getLogger(__name__)
E = TypeVar("E", CycleStarted, FailuresClustered)
_UNKNOWN_TASK_PATIENCE = timedelta(seconds=15)
"""A task is announced before anyone can use it, so this is many times the lag between two topics."""


class InputStore(Protocol):
    """A database of what a service has read."""

    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]: ...


class StepStore(InputStore, Protocol):
    """What a step needs of its service's database."""

    async def outcome(self, cycle_id: str) -> Event | None: ...


@dataclass(frozen=True)
class CycleStep:
    """A service's step of a cycle. `inputs` are the topics that must be read up to the cycle's fence.

    A step on data of people has the erasures among them: a database that was made anew has those people again until
    it has read who is forgotten.
    """

    service: str
    step: Step
    inputs: tuple[str, ...] = ()

    async def run(
        self,
        event: E,
        store: StepStore,
        publisher: Publisher,
        work: Callable[[E], Awaitable[Event | None]],
        save: Callable[[Event], Awaitable[None]] | None = None,
    ) -> None:
        """Publish the step's outcome: the stored one on a redelivery, else what `work` returns, else `steps.failed`.

        `work` returns None where a job that it submitted will publish the outcome.
        `save` stores an outcome, failures too; None: `work` stores its own, and a failed step is tried again on a
        redelivery. Raises InvalidMessage for an event without a cycle, DependencyUnavailable until all inputs below
        the fence are stored.
        """
        if event.cycle_id is None:
            raise InvalidMessage(f"{topic_of(type(event)).name} without a cycle_id")
        outcome = await store.outcome(event.cycle_id)
        if outcome is None:
            await self.check_inputs(event.fence, store)
            try:
                outcome = await work(event)
            except DependencyUnavailable:
                raise
            except StepImpossible as error:
                outcome = self.impossible(event, error)
            except Exception as error:  # A bug too ends the step with an event: silence would look like a stall.
                logger.exception("internal error in step %s of cycle %s", self.step, event.cycle_id)
                way_out = f"See the log of {self.service}; then start a new cycle."
                outcome = self.failed(event, str(error) or type(error).__name__, way_out)
            if outcome is None:
                return
            if save is not None:
                await save(outcome)
        await publisher.publish(outcome)

    async def check_inputs(self, fence: Sequence[PartitionFence], store: InputStore) -> None:
        """Raise DependencyUnavailable until the store has all inputs below the fence.

        A fence that an older scheduler made lacks topics that became inputs later: they are not waited for.
        """
        unread = await store.unread([part for part in fence if part.topic in self.inputs])
        if unread:
            partitions = ", ".join(f"{part.topic}/{part.partition}" for part in unread[:5])
            raise DependencyUnavailable(f"the cycle's inputs are not all read yet: {partitions}")

    def impossible(self, event: Event, error: StepImpossible) -> StepFailed:
        """Return the `steps.failed` that an error says."""
        skipped = isinstance(error, StepSkipped)
        return self.failed(event, error.reason, error.way_out, skipped=skipped, report=error.report)

    def progressed(self, event: Event, job: Job, progress: JobProgress) -> StepProgressed:
        """Return the `steps.progressed` of the event's cycle: how far the job is that does the step's work."""
        return StepProgressed(
            event_id=event_id(
                f"{self.step} progressed", job.name, progress.done, progress.message, progress.validation_loss
            ),
            task=event.task,
            task_revision=event.task_revision,
            cycle_id=event.cycle_id,
            step=self.step,
            done=progress.done,
            total=progress.total,
            message=progress.message[:500],
            loss=progress.loss,
            validation_loss=progress.validation_loss,
        )

    def failed(
        self,
        event: Event,
        reason: str,
        way_out: str,
        failure_id: UUID | None = None,
        *,
        skipped: bool = False,
        report: str | None = None,
    ) -> StepFailed:
        """Return the `steps.failed` of the event's cycle, its texts cut to what the contract allows."""
        return StepFailed(
            event_id=failure_id or event_id("steps.failed", self.service, event.cycle_id),
            task=event.task,
            task_revision=event.task_revision,
            cycle_id=event.cycle_id,
            service=self.service,
            step=self.step,
            reason=reason[:4_000],
            way_out=way_out[:2_000],
            skipped=skipped,
            report=report,
            failed_event=event.event_id,
        )


async def current_spec(event: Event, tasks: LatestByKey[TaskChanged], now: datetime) -> TaskSpec:
    """Return the event's task as it is now. Waits a moment where the event has a newer revision than `tasks`.

    Raises DependencyUnavailable for a task that is not read yet, InvalidMessage for one that nobody applied: it must
    not block the partition, and its dead letters can be replayed.
    """
    if tasks.is_missing(event.task) and now - event.occurred_at > _UNKNOWN_TASK_PATIENCE:
        raise InvalidMessage(f"no task {event.task!r}", "Apply the task, then replay the dead letters.")
    changed = await tasks.wait_until(
        event.task,
        lambda latest: latest.spec.revision == event.task_revision or latest.occurred_at > event.occurred_at,
    )
    return changed.spec


async def cycle_spec(event: Event, tasks: LatestByKey[TaskChanged], now: datetime) -> TaskSpec:
    """Return `current_spec` of a cycle's event. Raises StepImpossible if the task changed since the cycle started."""
    spec = await current_spec(event, tasks, now)
    if spec.revision != event.task_revision:
        raise StepImpossible(
            f"the task changed to revision {spec.revision} after the cycle started with {event.task_revision}",
            f"Start a cycle for the task as it is now: ratchet cycle {event.task}",
        )
    return spec
