"""Long work as jobs: a process of its own with a deterministic name, resumable, whose result is written atomically.

    <home>/jobs/<service>/<name>/   spec.json · lock · log.txt · progress.json · result.json | failure.json · announced

A handler submits and returns; `Jobs.watch` starts processes, attaches to running ones after a restart, and calls
back with the result until the callback has succeeded once. The process holds `lock` while it lives, so that a second
run of the same job can tell; `slots` is how many run at once over all services that share the slot folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel

from shared.errors import DependencyUnavailable, RatchetError
from shared.files import write_atomically

MAX_ATTEMPTS = 3
"""Starts of a job whose process dies without a word (killed, out of memory) before it counts as failed."""
PATIENCE_SECONDS = 600.0
"""How long a job waits for a dependency that is away before it counts as failed."""
_POLL_SECONDS = 0.5
_CALLBACK_PAUSE_SECONDS = 10.0

logger = logging.getLogger(__name__)


class JobFailure(BaseModel):
    """Why a job cannot finish."""

    reason: str
    way_out: str = ""


class JobProgress(BaseModel):
    done: float
    total: float
    message: str = ""


@dataclass(frozen=True)
class Job:
    """One job's folder, read."""

    name: str
    folder: Path

    @property
    def spec(self) -> bytes:
        return (self.folder / "spec.json").read_bytes()

    def read(self, file: str) -> bytes | None:
        path = self.folder / file
        return path.read_bytes() if path.exists() else None

    @property
    def running(self) -> bool:
        """Whether a process holds the job's lock. Looking takes the lock for an instant: `run_job` tries again."""
        path = self.folder / "lock"
        if not path.exists():
            return False
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


Result = TypeVar("Result", bound=BaseModel)
OnDone = Callable[[Job, bytes], Awaitable[None]]
OnFailed = Callable[[Job, JobFailure], Awaitable[None]]
OnProgress = Callable[[Job, JobProgress], Awaitable[None]]


class Jobs:
    """A service's jobs. `module` is run as `python -m MODULE FOLDER`."""

    def __init__(self, folder: Path, module: str, environment: dict[str, str] | None = None) -> None:
        self._folder = folder
        self._module = module
        self._environment = environment or {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._reported: dict[str, bytes] = {}
        self._not_before: dict[str, float] = {}

    def submit(self, name: str, spec: BaseModel) -> None:
        """Note the job; `watch` runs it. Submitting the same name again changes nothing."""
        path = self._folder / name / "spec.json"
        if not path.exists():
            write_atomically(path, spec.model_dump_json().encode())

    async def watch(self, on_done: OnDone, on_failed: OnFailed, on_progress: OnProgress | None = None) -> None:
        """Run and follow all jobs, for ever. Cancelling it leaves running processes running: they are resumed."""
        while True:
            for path in sorted(self._folder.glob("*/spec.json")):
                job = Job(path.parent.name, path.parent)
                if (job.folder / "announced").exists() or time.monotonic() < self._not_before.get(job.name, 0.0):
                    continue
                try:
                    await self._follow(job, on_done, on_failed, on_progress)
                except DependencyUnavailable as error:
                    logger.info("job %s: announced later: %s", job.name, error)
                except Exception:  # One job's trouble must not hold up the others.
                    logger.exception("job %s: its callback failed, again in %.0f s", job.name, _CALLBACK_PAUSE_SECONDS)
                    self._not_before[job.name] = time.monotonic() + _CALLBACK_PAUSE_SECONDS
            await asyncio.sleep(_POLL_SECONDS)

    async def _follow(self, job: Job, on_done: OnDone, on_failed: OnFailed, on_progress: OnProgress | None) -> None:
        process = self._processes.get(job.name)
        if (process is not None and process.poll() is None) or job.running:
            progress = job.read("progress.json")
            if on_progress is not None and progress is not None and self._reported.get(job.name) != progress:
                self._reported[job.name] = progress
                await on_progress(job, JobProgress.model_validate_json(progress))
            return
        if (result := job.read("result.json")) is not None:
            await on_done(job, result)
        elif (failure := job.read("failure.json")) is not None:
            await on_failed(job, JobFailure.model_validate_json(failure))
        else:
            self._start(job)
            return
        write_atomically(job.folder / "announced", b"")

    def _start(self, job: Job) -> None:
        attempts = int(job.read("attempts") or b"0")
        if attempts >= MAX_ATTEMPTS:
            reason = f"its process died {attempts} times without a result"
            failure = JobFailure(reason=reason, way_out=f"Read {job.folder / 'log.txt'}; then remove that folder.")
            write_atomically(job.folder / "failure.json", failure.model_dump_json().encode())
            return
        write_atomically(job.folder / "attempts", str(attempts + 1).encode())
        with (job.folder / "log.txt").open("ab") as log:
            self._processes[job.name] = subprocess.Popen(
                [sys.executable, "-m", self._module, str(job.folder)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )


def stop_running(folder: Path) -> list[str]:
    """End the jobs that run below `folder` (a service's jobs, or all services'); returns their names.

    For an operator who takes everything down. The next start resumes them, and this does not count as a crash.
    """
    stopped = []
    for lock in sorted(folder.glob("**/lock")):
        job = Job(lock.parent.name, lock.parent)
        if job.running and (pid := (job.read("lock") or b"").decode().strip()).isdigit():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)
            (job.folder / "attempts").unlink(missing_ok=True)
            stopped.append(job.name)
    return stopped


class Progress:
    """How far a job is, for those who watch. Cheap: it writes at most four times a second."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "progress.json"
        self._last = 0.0

    def __call__(self, done: float, total: float, message: str = "") -> None:
        now = time.monotonic()
        if now - self._last < 0.25 and done < total:
            return
        self._last = now
        fresh = self._path.with_suffix(".tmp")  # No fsync: losing a progress report in a crash is no loss.
        fresh.write_text(json.dumps({"done": done, "total": total, "message": message}))
        fresh.replace(self._path)


def run_job(work: Callable[[bytes, Path, Progress], Result], patience: float = PATIENCE_SECONDS) -> None:
    """The main of a job's module: `work(spec, folder, progress)` returns the result, or raises RatchetError.

    DependencyUnavailable is tried again for `patience` seconds: `work` must be able to start over. A killed process
    leaves neither a result nor a failure, and is started again.
    """
    folder = Path(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with (folder / "lock").open("ab") as lock:
        if not _acquire(lock):
            logger.info("another process runs this job")
            return
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())  # Who it is, for people and for those who must stop it.
        lock.flush()
        if (folder / "result.json").exists():
            return
        try:
            result = _patiently(work, folder, patience)
        except RatchetError as error:
            _fail(folder, JobFailure(reason=error.reason, way_out=error.way_out))
        except Exception as error:  # noqa: BLE001 - whatever it is, the service must hear of it
            traceback.print_exc()
            _fail(folder, JobFailure(reason=repr(error), way_out=f"Read {folder / 'log.txt'}."))
        else:
            write_atomically(folder / "result.json", result.model_dump_json().encode())


def _acquire(lock: IO[bytes]) -> bool:
    """Take the job's lock. Tries for a second: a watcher that just looks holds it for an instant."""
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _patiently(work: Callable[[bytes, Path, Progress], Result], folder: Path, patience: float) -> Result:
    deadline = time.monotonic() + patience
    pause = 0.5
    while True:
        try:
            return work((folder / "spec.json").read_bytes(), folder, Progress(folder))
        except DependencyUnavailable as error:
            if time.monotonic() + pause > deadline:
                raise
            logger.warning("waiting: %s %s", error.reason, error.way_out)
            Progress(folder)(0, 1, f"waiting: {error.reason}")
            time.sleep(pause)
            pause = min(pause * 2, 15.0)


def _fail(folder: Path, failure: JobFailure) -> None:
    write_atomically(folder / "failure.json", failure.model_dump_json().encode())


@contextmanager
def slot(folder: Path, count: int) -> Iterator[IO[bytes]]:
    """Hold one of `count` slots (a GPU each, say); waits until one is free. The lease ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [(folder / f"{number}.lock").open("ab") for number in range(count)]
    try:
        while True:
            for file in files:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield file
                return
            time.sleep(1.0)
    finally:
        for file in files:
            file.close()
