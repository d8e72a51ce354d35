"""Jobs: long work in processes of their own, with deterministic names, resumable, with atomically written results.

    <home>/jobs/<service>/<name>/   spec.json · lock · log.txt · progress.json · result.json | failure.json · announced
    <home>/jobs/<service>/ended/    a file for each cycle that was ended

A handler submits a job and returns; `Jobs.watch` starts processes, attaches to running ones after a restart, and calls
the callback with the result until it has succeeded once. The process holds `lock` while it lives, so that a second run
of the same job notices it. `lease` limits how many jobs run at once over all services that share a folder of leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NoReturn, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from shared.errors import DependencyUnavailable, RatchetError
from shared.files import write_atomically
from shared.identity import content_hash

MAX_ATTEMPTS = 3
"""How often a job is started whose process dies without a result (killed, out of memory) and comes no further, before
it has failed."""
MAX_WAIT_SECONDS = 600.0
"""How long a job waits for a dependency that is away, before it has failed."""
MAX_OUTAGES = 5
"""How often it does: one that works for hours each time and never ends must fail, too."""
_FURTHER = 0.05
"""A job that dies this share of its work further than before does not die for the same reason."""
_REPORTED_MINUTES = 24 * 60
"""Of a wait for a lease: who holds it longer than a day hangs, and all that wait are late."""
_END_SECONDS = 10.0
"""How long a process that is asked to end may take."""
_POLL_SECONDS = 0.5
_CALLBACK_PAUSE_SECONDS = 10.0
_DISK_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))

logger = logging.getLogger(__name__)


class JobFailure(BaseModel):
    """Why a job cannot finish."""

    reason: str
    way_out: str = ""


class JobProgress(BaseModel):
    """How far a job is. `validation_loss`: the last one that was measured."""

    done: float
    total: float
    message: str = ""
    loss: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True)
class Job:
    """One job, read from its folder."""

    name: str
    folder: Path

    @property
    def spec(self) -> bytes:
        return (self.folder / "spec.json").read_bytes()

    def read(self, file: str) -> bytes | None:
        path = self.folder / file
        return path.read_bytes() if path.exists() else None

    @property
    def progress(self) -> JobProgress | None:
        """What its process reported last; None: nothing yet, or the machine went down before it was on the disk."""
        reported = self.read("progress.json")
        with contextlib.suppress(ValidationError):
            return None if reported is None else JobProgress.model_validate_json(reported)
        return None

    @property
    def running(self) -> bool:
        """True if a process holds the job's lock. Checking takes the lock for an instant, so `run_job` retries."""
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


class JobProcess(Protocol):
    """The process of a job, as `subprocess.Popen` has it. `poll`: None while it lives."""

    def poll(self) -> int | None: ...
    def send_signal(self, number: int) -> None: ...


JobStarter = Callable[[str, Path, Mapping[str, str]], JobProcess]
"""Starts `python -m MODULE FOLDER` with more environment variables; its output goes to the folder's `log.txt`."""


def start_here(module: str, folder: Path, environment: Mapping[str, str]) -> JobProcess:
    """Start the process on this machine. It lives on when the service ends."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,
        )


class Jobs:
    """A service's jobs, each run as `python -m MODULE FOLDER`."""

    def __init__(
        self,
        folder: Path,
        module: str,
        environment: dict[str, str] | None = None,
        start: JobStarter = start_here,
    ) -> None:
        self._folder = folder
        self._module = module
        self._environment = environment or {}
        self._start_process = start
        self._processes: dict[str, JobProcess] = {}
        self._reported: dict[str, JobProgress] = {}
        self._not_before: dict[str, float] = {}

    def submit(self, name: str, spec: BaseModel, cycle_id: str | None = None) -> None:
        """Store the job for `watch` to run, unless `end` has ended its cycle. Idempotent for the same name.

        Raises DependencyUnavailable on a full disk: the event that asks for the job is delivered again.
        """
        path = self._folder / name / "spec.json"
        if cycle_id is not None and self._end_of(cycle_id).exists():
            logger.warning("job %s is not run: its cycle %s was ended before", name, cycle_id)
        elif not path.exists():
            self._store(path, spec.model_dump_json().encode())

    async def end(self, cycle_id: str, is_meant: Callable[[Job], bool]) -> list[Job]:
        """End a cycle for good: these of its jobs, running or not, of which nothing is announced, and all that are
        submitted later. Returns those that it ended. Raises DependencyUnavailable on a full disk.
        """
        self._store(self._end_of(cycle_id), b"")
        jobs = (Job(path.parent.name, path.parent) for path in sorted(self._folder.glob("*/spec.json")))
        ended = [job for job in jobs if not (job.folder / "announced").exists() and is_meant(job)]
        for job in ended:
            self._store(job.folder / "announced", b"")  # First: `watch` would start it again.
            self._send(job, signal.SIGTERM)
        deadline = time.monotonic() + _END_SECONDS
        while any(self._lives(job) for job in ended) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        for job in ended:
            self._send(job, signal.SIGKILL)  # One that hangs in a library hears nothing else.
            logger.warning("job %s was ended", job.name)
        return ended

    def _end_of(self, cycle_id: str) -> Path:
        """Return the file that says that a cycle was ended."""
        return self._folder / "ended" / content_hash(cycle_id)

    def _store(self, path: Path, data: bytes) -> None:
        try:
            write_atomically(path, data)
        except OSError as error:
            raise DependencyUnavailable(
                f"{path} was not stored: {error}", f"Is the disk of {self._folder} full?"
            ) from error

    def _lives(self, job: Job) -> bool:
        """Return True if the job has a process: one that holds its lock, or one that this service has started."""
        process = self._processes.get(job.name)
        return (process is not None and process.poll() is None) or job.running

    def _send(self, job: Job, number: signal.Signals) -> None:
        """Send a signal to the job's process, also to one that imports its libraries and has no lock yet."""
        _signal(job, number)
        if (process := self._processes.get(job.name)) is not None:
            process.send_signal(number)

    async def watch(self, on_done: OnDone, on_failed: OnFailed, on_progress: OnProgress | None = None) -> None:
        """Run and follow all jobs forever. After a cancellation their processes run on: the next `watch` attaches."""
        while True:
            for path in sorted(self._folder.glob("*/spec.json")):
                job = Job(path.parent.name, path.parent)
                if (job.folder / "announced").exists() or time.monotonic() < self._not_before.get(job.name, 0.0):
                    continue
                try:
                    await self._follow(job, on_done, on_failed, on_progress)
                except DependencyUnavailable as error:
                    logger.info("job %s: its result is announced later: %s", job.name, error)
                except Exception:  # One job's error must not hold up the others.
                    logger.exception("job %s: internal error, retrying in %.0f s", job.name, _CALLBACK_PAUSE_SECONDS)
                    self._not_before[job.name] = time.monotonic() + _CALLBACK_PAUSE_SECONDS
            await asyncio.sleep(_POLL_SECONDS)

    async def _follow(self, job: Job, on_done: OnDone, on_failed: OnFailed, on_progress: OnProgress | None) -> None:
        lives = self._lives(job)
        progress = job.progress  # Read afterwards: the last one of a process that has just ended counts, too.
        if on_progress is not None and progress is not None and self._reported.get(job.name) != progress:
            self._reported[job.name] = progress
            await on_progress(job, progress)
        if lives:
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
        attempts = 0 if _came_further(job) else int(job.read("attempts") or b"0")
        if attempts >= MAX_ATTEMPTS:
            way_out = f"Read {job.folder / 'log.txt'}; then remove that folder."
            _fail(job.folder, JobFailure(reason=f"its process died {attempts} times without a result", way_out=way_out))
            return
        write_atomically(job.folder / "attempts", str(attempts + 1).encode())
        self._processes[job.name] = self._start_process(self._module, job.folder, self._environment)


def _came_further(job: Job) -> bool:
    """Return True for a job whose process died further than any before, and note how far that was.

    One that resumes where the last one was may be killed as often as its machine restarts.
    """
    if (progress := job.progress) is None:
        return False
    done = progress.done / progress.total if progress.total else 0.0
    if done < float(job.read("furthest") or b"0") + _FURTHER:
        return False
    write_atomically(job.folder / "furthest", str(done).encode())
    return True


def stop_running(folder: Path) -> list[str]:
    """Terminate the jobs that run below `folder` (a service's, or all services'); returns their names.

    The next start resumes them, and the attempt does not count as a crash (`_end`).
    """
    stopped = []
    for lock in sorted(folder.glob("**/lock")):
        job = Job(lock.parent.name, lock.parent)
        if _signal(job, signal.SIGTERM):
            stopped.append(job.name)
    return stopped


def _signal(job: Job, number: signal.Signals) -> bool:
    """Send a signal to a job's process. Returns False if it has none on this machine."""
    pid, _, machine = (job.read("lock") or b"").decode().partition(" ")
    if not job.running or not pid.isdigit() or machine != platform.node():
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), number)
    return True


class Progress:
    """Reports how far a job is. Cheap: it writes its file at most four times a second.

    A validation loss stays in all later reports: they are dropped, or read, too seldom for one to be seen for certain.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "progress.json"
        self._last = 0.0
        self._validation_loss: float | None = None

    def __call__(
        self,
        done: float,
        total: float,
        message: str = "",
        loss: float | None = None,
        validation_loss: float | None = None,
    ) -> None:
        if validation_loss is not None:
            self._validation_loss = validation_loss
        now = time.monotonic()
        if now - self._last < 0.25 and done < total:
            return
        self._last = now
        temporary = self._path.with_suffix(".tmp")  # No fsync: a crash may lose a progress report.
        with contextlib.suppress(OSError):  # So may a full disk.
            report = JobProgress(
                done=done, total=total, message=message, loss=loss, validation_loss=self._validation_loss
            )
            temporary.write_text(report.model_dump_json())
            temporary.replace(self._path)


def run_job(work: Callable[[bytes, Path, Progress], Result], max_wait: float = MAX_WAIT_SECONDS) -> None:
    """Run the job whose folder is the first argument: the main function of a job's module.

    `work(spec, folder, progress)` returns the result or raises RatchetError. It is retried for `max_wait` seconds after
    a DependencyUnavailable or on a full disk, so it must be able to start over; anew if it worked for longer than that
    in between, but `MAX_OUTAGES` times at most. A killed process leaves neither a result nor a failure, and is started
    again.
    """
    folder = Path(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with (folder / "lock").open("ab") as lock:
        if not _acquire(lock):
            logger.info("another process runs this job already")
            return
        lock.truncate(0)
        lock.write(f"{os.getpid()} {platform.node()}".encode())  # For people, and for `stop_running`.
        lock.flush()
        if (folder / "result.json").exists() or (folder / "announced").exists():  # It was done, or ended, meanwhile.
            return
        signal.signal(signal.SIGTERM, partial(_end, folder))
        try:
            _call_with_retries(_storing_result(work), folder, max_wait)
        except RatchetError as error:
            _fail(folder, JobFailure(reason=error.reason, way_out=error.way_out))
        except Exception as error:  # noqa: BLE001 - the service must learn of any error
            traceback.print_exc()
            _fail(folder, JobFailure(reason=repr(error), way_out=f"Read {folder / 'log.txt'}."))


def _end(folder: Path, *_: object) -> NoReturn:
    """End this process on request, which is no crash: a service's manager ends its jobs with it at each restart."""
    (folder / "attempts").unlink(missing_ok=True)
    os._exit(128 + signal.SIGTERM)


def _storing_result(work: Callable[[bytes, Path, Progress], Result]) -> Callable[[bytes, Path, Progress], None]:
    """Return what does the work, once, and stores its result, as often as it takes."""
    results: list[Result] = []

    def work_and_store(spec: bytes, folder: Path, progress: Progress) -> None:
        results[:] = results or [work(spec, folder, progress)]
        write_atomically(folder / "result.json", results[0].model_dump_json().encode())

    return work_and_store


def _acquire(lock: IO[bytes]) -> bool:
    """Take the job's lock; retries for a second, since a watcher that checks it holds it for an instant."""
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _call_with_retries(work: Callable[[bytes, Path, Progress], None], folder: Path, max_wait: float) -> None:
    deadline, pause, outages = 0.0, 0.5, 0
    while True:
        started = time.monotonic()
        try:
            work((folder / "spec.json").read_bytes(), folder, Progress(folder))
            return
        except Exception as error:
            if (away := _what_is_away(error)) is None:
                raise
            now = time.monotonic()
            if not outages or now - started > max_wait:  # Another one: what was away hours ago had come back.
                deadline, pause, outages = now + max_wait, 0.5, outages + 1
            if now + pause > deadline or outages > MAX_OUTAGES:
                raise away from error
            logger.warning("retrying in %.1f s: %s %s", pause, away.reason, away.way_out)
            Progress(folder)(0, 1, f"waiting: {away.reason}")
            time.sleep(pause)
            pause = min(pause * 2, 15.0)


def _what_is_away(error: BaseException) -> DependencyUnavailable | None:
    """Return what an error says is away for now, a dependency or room on a disk; None for an error of another kind."""
    if isinstance(error, DependencyUnavailable):
        return error
    cause: BaseException | None = error
    while cause is not None:  # Libraries wrap a full disk in errors of their own; safetensors keeps the words alone.
        if (isinstance(cause, OSError) and cause.errno in _DISK_FULL) or os.strerror(errno.ENOSPC) in str(cause):
            way_out = "Make room on the disks of the home and of temporary files: it goes on by itself for a while."
            return DependencyUnavailable(f"a disk is full: {cause}", way_out)
        cause = cause.__cause__ or cause.__context__
    return None


def _fail(folder: Path, failure: JobFailure) -> None:
    write_atomically(folder / "failure.json", failure.model_dump_json().encode())


@contextmanager
def lease(folder: Path, count: int, progress: Progress | None = None) -> Iterator[int]:
    """Hold one of `count` leases (a GPU each, say) for the length of a `with`; waits for a free one. Gives its number,
    counted from 0.

    For a day it reports each minute that it waits: a job is not late because another one takes long. The lease ends
    when the process ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [(folder / f"{number}.lock").open("ab") for number in range(count)]
    since, reported = time.monotonic(), -1
    try:
        while True:
            for number, file in enumerate(files):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield number
                return
            minutes = int((time.monotonic() - since) / 60)
            if progress is not None and reported < minutes <= _REPORTED_MINUTES:
                progress(0, 1, f"waiting for {minutes} min until another job ends")
                reported = minutes
            time.sleep(1.0)
    finally:
        for file in files:
            file.close()
