"""Announces erasures: turns names of people into the keyed hashes that events carry, and publishes one event per task.

The moment of the request is the scheduler's: what a person did up to it is dropped everywhere, what they do later is
stored as usual. So a later request is another event, which covers the time between the two. The name of a person stays
in this process: neither events nor logs contain it. Golden rows that were made of what they asked are removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from schemas.base import utc_now
from schemas.predictions import SubjectForgotten
from schemas.rollouts import RolloutChanged, Stage
from schemas.tasks import TaskSpec
from services.scheduler.golden.changes import Author, ForgottenRows, forget_people
from services.scheduler.task_watcher import TABLE_SECONDS
from shared.identity import event_id, keyed_hash
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import Publisher

_ON_TRIAL = (Stage.QUEUED, Stage.SHADOW, Stage.CANARY)


@dataclass(frozen=True)
class AdaptersInUse:
    """A task's adapters that serve, are on trial or wait for it; None: the base model, or no such adapter."""

    task: str
    primary: str | None
    previous: str | None
    candidate: str | None


@dataclass(frozen=True)
class ErasureReport:
    """The hashes of a request in its order, and its tasks with their adapters in use and removed golden rows."""

    subjects: tuple[str, ...]
    at: datetime
    announced: bool
    tasks: tuple[AdaptersInUse, ...]
    golden: tuple[ForgottenRows, ...]

    def body(self) -> dict[str, Any]:
        return asdict(self)


class ErasureAnnouncer:
    """The only producer of `subjects.forgotten`."""

    def __init__(
        self,
        publisher: Publisher,
        rollouts: LatestByKey[RolloutChanged],
        key: bytes,
        tasks_folder: Path,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._publisher = publisher
        self._rollouts = rollouts
        self._key = key
        self._tasks_folder = tasks_folder
        self._now = now

    async def forget(
        self, users: Sequence[str], hashes: Sequence[str], specs: Sequence[TaskSpec], *, announce: bool = True
    ) -> ErasureReport:
        """Announce the erasure of these people in these tasks. `announce` False: only report who and where.

        Raises DependencyUnavailable while the broker is away, or its rollouts are not read; send the request again
        then.
        """
        await self._rollouts.until_read(TABLE_SECONDS)
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
        author = Author("ratchet forget", "a person was forgotten", at)
        names = [spec.name for spec in specs]
        golden = await asyncio.to_thread(
            forget_people, self._tasks_folder, names, subjects, author, dry_run=not announce
        )
        return ErasureReport(subjects, at, announce, tuple(map(self._adapters_in_use, names)), tuple(golden))

    def _adapters_in_use(self, task: str) -> AdaptersInUse:
        last = self._rollouts.get(task)
        if last is None:
            return AdaptersInUse(task, None, None, None)
        candidate = last.candidate_adapter if last.stage in _ON_TRIAL else None
        return AdaptersInUse(task, last.primary_adapter, last.previous_adapter, candidate)
