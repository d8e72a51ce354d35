"""Forgetting people: who they are, as the keyed hash that events carry, and the event of it for each task.

The moment is the scheduler's own: what a person did up to then is dropped everywhere, and what they do later is new.
Asking again is therefore another fact, which covers what came in between. The id of the person stays in this process:
neither the events nor the logs have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from schemas.base import utc_now
from schemas.predictions import SubjectForgotten
from schemas.rollouts import RolloutChanged, Stage
from schemas.tasks import TaskSpec
from services.scheduler.task_watcher import Tasks
from shared.identity import event_id, keyed_hash
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import EventPublisher


@dataclass(frozen=True)
class Serving:
    """The adapters in use of a task. None: the base model, or that there is no such adapter."""

    task: str
    primary: str | None
    previous: str | None
    candidate: str | None


@dataclass(frozen=True)
class Forgetting:
    """What was asked for: the hashes in the order of the request, and the tasks with what they use now."""

    subjects: tuple[str, ...]
    at: datetime
    announced: bool
    tasks: tuple[Serving, ...]

    def body(self) -> dict[str, Any]:
        return asdict(self)


class Subjects:
    def __init__(
        self,
        publisher: EventPublisher,
        tasks: Tasks,
        rollouts: LatestByKey[RolloutChanged],
        key: bytes,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._publisher = publisher
        self._tasks = tasks
        self._rollouts = rollouts
        self._key = key
        self._now = now

    async def forget(
        self, users: Sequence[str], hashes: Sequence[str], specs: Sequence[TaskSpec], *, announce: bool = True
    ) -> Forgetting:
        """Tell everybody to forget these people in these tasks. `announce` False: only say who and where.

        Raises DependencyUnavailable while the broker is away; then it is to be asked again.
        """
        at = self._now()
        subjects = tuple(dict.fromkeys([*(keyed_hash(self._key, user) for user in users), *hashes]))
        for spec in specs if announce else ():
            for subject in subjects:
                await self._publisher.publish(
                    SubjectForgotten(
                        event_id=event_id("subjects.forgotten", spec.name, subject, at),
                        occurred_at=at,
                        task=spec.name,
                        task_revision=spec.revision,
                        subject_hash=subject,
                    )
                )
        return Forgetting(subjects, at, announce, tuple(self._serving(spec.name) for spec in specs))

    def _serving(self, task: str) -> Serving:
        last = self._rollouts.get(task)
        if last is None:
            return Serving(task, None, None, None)
        running = last.stage in (Stage.SHADOW, Stage.CANARY)
        return Serving(task, last.primary_adapter, last.previous_adapter, last.candidate_adapter if running else None)
