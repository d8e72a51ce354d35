"""Jobs in this process: what a service submits is run at once when it is asked for, one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import BaseModel

from shared.errors import RatchetError
from shared.files import write_atomically
from shared.jobs import Job, JobFailure

Work = Callable[[bytes, Path], Awaitable[BaseModel]]
OnDone = Callable[[Job, bytes], Awaitable[None]]
OnFailed = Callable[[Job, JobFailure], Awaitable[None]]


class InlineJobs:
    """Takes the place of `shared.jobs.Jobs`."""

    def __init__(self, folder: Path, work: Work) -> None:
        self._folder, self._work = folder, work
        self._waiting: list[Job] = []

    def submit(self, name: str, spec: BaseModel, cycle_id: str | None = None) -> None:
        path = self._folder / name / "spec.json"
        if not path.exists():
            write_atomically(path, spec.model_dump_json().encode())
            self._waiting.append(Job(name, path.parent))

    async def end(self, cycle_id: str, is_meant: Callable[[Job], bool]) -> list[Job]:
        """End those of the jobs that were not run yet."""
        ended = [job for job in self._waiting if is_meant(job)]
        self._waiting = [job for job in self._waiting if job not in ended]
        return ended

    async def run(self, on_done: OnDone, on_failed: OnFailed) -> bool:
        """Run what was submitted. Returns False if there was nothing."""
        jobs, self._waiting = self._waiting, []
        for job in jobs:
            try:
                result = await self._work(job.spec, job.folder)
            except RatchetError as error:
                await on_failed(job, JobFailure(reason=error.reason, way_out=error.way_out))
            else:
                await on_done(job, result.model_dump_json().encode())
        return bool(jobs)
