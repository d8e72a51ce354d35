"""Jobs are processes that outlive the service that starts them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import BaseModel

from shared import jobs
from shared.errors import DependencyUnavailable
from shared.jobs import Job, JobFailure, JobProgress, Jobs, Progress, lease, run_job
from tests.waiting import PATIENCE_SECONDS, until

WORK = """
    import os, signal, sys, time
    from pathlib import Path
    from pydantic import BaseModel
    from shared.errors import DependencyUnavailable, StepImpossible
    from shared.jobs import run_job

    class Result(BaseModel):
        value: str

    def work(spec, folder, progress):
        with (folder / "starts").open("a") as starts:
            starts.write(f"{os.getpid()}\\n")
        kind = spec.decode().partition('"kind":"')[2].partition('"')[0]
        if kind == "impossible":
            raise StepImpossible("too few rows", "label more")
        if kind == "bug":
            raise KeyError("oh")
        if kind == "dies":
            os._exit(9)
        number = (folder / "starts").read_text().count("\\n")
        if kind == "advances" and number < 6:
            progress(number, 6)
            os._exit(9)
        if kind == "stuck":
            progress(1, 2)
            os._exit(9)
        if kind == "unavailable" and (folder / "starts").read_text().count("\\n") < 3:
            raise DependencyUnavailable("nobody answers")
        progress(1, 2, "half")
        if kind == "deaf":  # As one that hangs in a library, where no handler of Python's runs.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while kind in ("slow", "deaf") and not (folder / "go").exists():
            time.sleep(0.02)
        return Result(value=kind)

    run_job(work)
"""


class Spec(BaseModel):
    kind: str


class Callbacks:
    """A service's callbacks, and what they were called with."""

    def __init__(self) -> None:
        self.done: list[tuple[str, bytes]] = []
        self.failed: list[tuple[str, JobFailure]] = []
        self.progress: list[JobProgress] = []
        self.errors: list[Exception] = []

    async def on_done(self, job: Job, result: bytes) -> None:
        if self.errors:
            raise self.errors.pop()
        self.done.append((job.name, result))

    async def on_failed(self, job: Job, failure: JobFailure) -> None:
        self.failed.append((job.name, failure))

    async def on_progress(self, job: Job, progress: JobProgress) -> None:
        self.progress.append(progress)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    code = tmp_path / "code"
    code.mkdir()
    (code / "job_for_test.py").write_text(textwrap.dedent(WORK))
    return {"PYTHONPATH": f"{code}:{Path.cwd()}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(jobs, "_CALLBACK_PAUSE_SECONDS", 0.1)


@contextlib.asynccontextmanager
async def watched(watcher: Jobs, callbacks: Callbacks) -> AsyncIterator[None]:
    task = asyncio.create_task(watcher.watch(callbacks.on_done, callbacks.on_failed, callbacks.on_progress))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def starts(folder: Path, name: str) -> list[int]:
    path = folder / name / "starts"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_a_job_runs_once_and_is_announced_once(folder: Path, environment: dict[str, str]) -> None:
    callbacks = Callbacks()
    watcher = Jobs(folder, "job_for_test", environment)
    watcher.submit("a", Spec(kind="quick"))
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.done)
        watcher.submit("a", Spec(kind="other"))  # Idempotent for the same name.
        await asyncio.sleep(0.2)
    assert callbacks.done == [("a", b'{"value":"quick"}')]
    assert len(starts(folder, "a")) == 1
    later = Callbacks()
    async with watched(Jobs(folder, "job_for_test", environment), later):
        await asyncio.sleep(0.2)
    assert later.done == []


def test_a_job_that_a_full_disk_does_not_store_is_asked_for_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unforeseen error would make a dead letter of the event that asks for it, and end the cycle's way there."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    watcher = Jobs(folder, "job_for_test")
    with monkeypatch.context() as patched, pytest.raises(DependencyUnavailable, match="No space left"):
        patched.setattr(os, "fsync", full)
        watcher.submit("a", Spec(kind="quick"))
    assert not list(folder.glob("*/*"))
    watcher.submit("a", Spec(kind="quick"))
    assert (folder / "a" / "spec.json").read_bytes() == b'{"kind":"quick"}'


async def test_a_killed_job_is_started_again_and_finishes(folder: Path, environment: dict[str, str]) -> None:
    callbacks = Callbacks()
    watcher = Jobs(folder, "job_for_test", environment)
    watcher.submit("a", Spec(kind="slow"))
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.progress)
        os.kill(starts(folder, "a")[0], signal.SIGKILL)
        await until(lambda: len(starts(folder, "a")) == 2)
        (folder / "a" / "go").touch()
        await until(lambda: callbacks.done)
    assert callbacks.failed == []


async def test_a_stopped_job_is_resumed_and_does_not_count_as_crashed(
    folder: Path, environment: dict[str, str]
) -> None:
    callbacks = Callbacks()
    for count in range(1, jobs.MAX_ATTEMPTS + 3):  # The first time it has come further than before.
        watcher = Jobs(folder, "job_for_test", environment)
        watcher.submit("a", Spec(kind="slow"))
        async with watched(watcher, callbacks):
            await until(lambda: callbacks.failed or len(starts(folder, "a")) == count)  # noqa: B023 - awaited here
        assert jobs.stop_running(folder) == ["a"]
        await until(lambda: not Job("a", folder / "a").running)
    assert jobs.stop_running(folder) == []
    assert callbacks.failed == []


@pytest.mark.parametrize("kind", ["slow", "deaf", "impossible"])
async def test_a_job_that_is_ended_is_neither_announced_nor_started_again(
    folder: Path, environment: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_END_SECONDS", 0.2 if kind == "deaf" else PATIENCE_SECONDS)
    callbacks = Callbacks()
    watcher = Jobs(folder, "job_for_test", environment)
    watcher.submit("a", Spec(kind=kind))
    watcher.submit("b", Spec(kind="slow"))
    async with watched(watcher, callbacks):
        await until(lambda: starts(folder, "a") and starts(folder, "b"))
        if kind == "impossible":
            await until(lambda: callbacks.failed)
            assert await watcher.end("c", lambda job: job.name == "a") == [], "it had ended"
        else:
            await until(lambda: callbacks.progress)
            assert [job.name for job in await watcher.end("c", lambda job: job.name == "a")] == ["a"]
            await until(lambda: not Job("a", folder / "a").running)
        (folder / "a" / "go").touch()
        (folder / "b" / "go").touch()
        await until(lambda: callbacks.done)
        await asyncio.sleep(0.2)
    assert callbacks.done == [("b", b'{"value":"slow"}')]
    assert len(callbacks.failed) == (kind == "impossible")
    assert len(starts(folder, "a")) == 1


async def test_a_job_that_is_submitted_after_the_end_of_its_cycle_is_not_run(folder: Path) -> None:
    await Jobs(folder, "job_for_test").end("c/1", lambda job: False)
    restarted = Jobs(folder, "job_for_test")
    for name, cycle in {"a": "c/1", "b": "c/2", "c": None}.items():
        restarted.submit(name, Spec(kind="quick"), cycle)
    assert {name for name in "abc" if (folder / name).exists()} == {"b", "c"}


async def test_a_job_is_ended_whose_process_has_no_lock_yet(folder: Path, environment: dict[str, str]) -> None:
    """It imports its libraries, for half a minute on a busy machine."""
    imports, module = folder.parent / "imports", folder.parent / "code" / "slow_import.py"
    module.write_text(
        f"import os, time; from pathlib import Path\nPath({str(imports)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(3600)\nimport job_for_test"
    )
    watcher, callbacks = Jobs(folder, "slow_import", environment), Callbacks()
    watcher.submit("a", Spec(kind="quick"))
    async with watched(watcher, callbacks):
        process = int(await until(lambda: imports.exists() and imports.read_text()))
        assert not Job("a", folder / "a").running
        assert [job.name for job in await watcher.end("c", lambda job: True)] == ["a"]
        with pytest.raises(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    assert (callbacks.done, callbacks.failed) == ([], [])


async def test_a_restarted_service_attaches_to_the_running_process(folder: Path, environment: dict[str, str]) -> None:
    first = Jobs(folder, "job_for_test", environment)
    first.submit("a", Spec(kind="slow"))
    async with watched(first, Callbacks()):
        await until(lambda: starts(folder, "a"))
    callbacks = Callbacks()
    async with watched(Jobs(folder, "job_for_test", environment), callbacks):
        await until(lambda: callbacks.progress)
        (folder / "a" / "go").touch()
        await until(lambda: callbacks.done)
    assert len(starts(folder, "a")) == 1


async def test_a_second_process_of_a_running_job_exits(folder: Path, environment: dict[str, str]) -> None:
    callbacks = Callbacks()
    watcher = Jobs(folder, "job_for_test", environment)
    watcher.submit("a", Spec(kind="slow"))
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.progress)
        second = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "job_for_test", str(folder / "a"), env={**os.environ, **environment}
        )
        assert await second.wait() == 0
        assert Job("a", folder / "a").running
        (folder / "a" / "go").touch()
        await until(lambda: callbacks.done)
    assert len(starts(folder, "a")) == 1


@pytest.mark.parametrize(
    ("kind", "reason", "way_out"),
    [("impossible", "too few rows", "label more"), ("bug", "KeyError('oh')", "Read ")],
)
async def test_a_failure_is_announced_once_with_its_reason(
    folder: Path, environment: dict[str, str], kind: str, reason: str, way_out: str
) -> None:
    callbacks = Callbacks()
    watcher = Jobs(folder, "job_for_test", environment)
    watcher.submit("a", Spec(kind=kind))
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.failed)
        await asyncio.sleep(0.2)
    ((name, failure),) = callbacks.failed
    assert (name, failure.reason) == ("a", reason)
    assert failure.way_out.startswith(way_out)
    assert len(starts(folder, "a")) == 1


async def test_a_job_that_always_dies_fails(folder: Path, environment: dict[str, str]) -> None:
    callbacks = Callbacks()
    watcher = Jobs(folder, "job_for_test", environment)
    watcher.submit("a", Spec(kind="dies"))
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.failed)
    assert "died 3 times" in callbacks.failed[0][1].reason
    assert len(starts(folder, "a")) == 3


async def test_a_job_that_comes_further_each_time_may_die_often_and_one_that_does_not_fails(
    folder: Path, environment: dict[str, str]
) -> None:
    """A long training resumes from its last checkpoint after each restart of its machine."""
    callbacks = Callbacks()
    watcher = Jobs(folder, "job_for_test", environment)
    watcher.submit("a", Spec(kind="advances"))
    watcher.submit("b", Spec(kind="stuck"))
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.failed and callbacks.done)
    assert (callbacks.done[0][0], len(starts(folder, "a"))) == ("a", 6)
    assert (callbacks.failed[0][0], len(starts(folder, "b"))) == ("b", 4)


async def test_a_job_waits_for_a_dependency_that_is_away(folder: Path, environment: dict[str, str]) -> None:
    callbacks = Callbacks()
    watcher = Jobs(folder, "job_for_test", environment)
    watcher.submit("a", Spec(kind="unavailable"))
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.done)
    assert len(set(starts(folder, "a"))) == 1  # One process, which tried three times.
    assert callbacks.failed == []


def run_by(
    clock: list[float], work: Callable[[bytes, Path, Progress], Spec], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a job in this process, by a clock that the work moves."""
    (folder / "spec.json").write_bytes(b"{}")
    monkeypatch.setattr("sys.argv", ["job", str(folder)])
    monkeypatch.setattr("shared.jobs.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("shared.jobs.time.sleep", lambda seconds: None)
    run_job(work)


def test_work_that_takes_longer_than_a_job_waits_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build of a quarter of an hour whose database was away for a moment at its end had failed."""
    clock, tried = [0.0], []

    def work(spec: bytes, folder: Path, progress: Progress) -> Spec:
        tried.append(clock[0])
        clock[0] += 900.0
        if len(tried) == 1:
            raise DependencyUnavailable("away for a moment")
        return Spec(kind="built")

    run_by(clock, work, tmp_path, monkeypatch)
    assert len(tried) == 2
    assert (tmp_path / "result.json").exists() and not (tmp_path / "failure.json").exists()


@pytest.mark.parametrize(("outages", "ends_with"), [(5, "result.json"), (1_000, "failure.json")])
def test_what_was_away_hours_ago_takes_no_time_of_a_later_outage_and_a_job_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outages: int, ends_with: str
) -> None:
    """The dataset could be fetched at the second try; hours of training later the store was away for a second, and the
    adapter was lost."""
    clock, tried = [0.0], []

    def work(spec: bytes, folder: Path, progress: Progress) -> Spec:
        clock[0] += 3 * 3_600.0 if tried else 1.0
        tried.append(clock[0])
        if len(tried) <= outages:
            raise DependencyUnavailable("away for a moment")
        return Spec(kind="trained")

    run_by(clock, work, tmp_path, monkeypatch)
    assert len(tried) == 6
    assert (tmp_path / ends_with).exists()


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_process_that_the_service_does_not_know_does_no_work_of_a_job_that_was_ended_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was started before the service itself restarted, and had no lock yet either."""
    worked = []

    def work(spec: bytes, folder: Path, progress: Progress) -> Spec:
        worked.append(spec)
        return Spec(kind="trained")

    (tmp_path / "announced").touch()
    run_by([0.0], work, tmp_path, monkeypatch)
    assert not worked and not (tmp_path / "result.json").exists()


def wrapped(message: str) -> RuntimeError:
    error = RuntimeError(message)
    error.__cause__ = FULL
    return error


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        wrapped("not written"),
        RuntimeError("IoError(Os { message: No space left on device })"),
    ],
)
def test_a_disk_that_is_full_for_a_moment_fails_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It had ended the cycle of the week at once, while the same error of an upload was tried again."""
    tried = []

    def work(spec: bytes, folder: Path, progress: Progress) -> Spec:
        tried.append(1)
        if len(tried) < 3:
            raise error
        return Spec(kind="built")

    run_by([0.0], work, tmp_path, monkeypatch)
    assert (tmp_path / "result.json").exists()


def test_a_disk_that_is_full_at_the_end_of_the_work_costs_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, worked = [], []

    def write(path: Path, data: bytes) -> None:
        written.append(path.name)
        if len(written) < 3:
            raise FULL
        path.write_bytes(data)

    def work(spec: bytes, folder: Path, progress: Progress) -> Spec:
        worked.append(1)
        return Spec(kind="trained")

    monkeypatch.setattr(jobs, "write_atomically", write)
    run_by([0.0], work, tmp_path, monkeypatch)
    assert (written, len(worked)) == (["result.json"] * 3, 1)


def test_a_disk_that_stays_full_fails_the_job_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def work(spec: bytes, folder: Path, progress: Progress) -> Spec:
        clock[0] += 300.0
        raise FULL

    run_by(clock, work, tmp_path, monkeypatch)
    failure = JobFailure.model_validate_json((tmp_path / "failure.json").read_bytes())
    assert failure.reason == "a disk is full: [Errno 28] No space left on device"
    assert "Make room" in failure.way_out


def test_a_validation_loss_is_in_the_next_report_and_all_later_ones(tmp_path: Path) -> None:
    """Reports within 250 ms are dropped, and a watcher reads every other second."""
    progress, job = Progress(tmp_path), Job("a", tmp_path)
    progress(1, 10, "one", loss=2.5)
    progress(1, 10, "validated", loss=2.5, validation_loss=1.5)
    assert job.progress == JobProgress(done=1, total=10, message="one", loss=2.5), "too soon"
    for step in (2, 3):
        time.sleep(0.3)
        progress(step, 10, "on", loss=2.0)
        assert job.progress == JobProgress(done=step, total=10, message="on", loss=2.0, validation_loss=1.5)


async def test_what_a_process_reports_last_is_heard_before_its_result(
    folder: Path, environment: dict[str, str]
) -> None:
    callbacks = Callbacks()
    watcher = Jobs(folder, "job_for_test", environment)
    watcher.submit("a", Spec(kind="quick"))
    job = Job("a", folder / "a")
    (job.folder / "result.json").write_bytes(b"{}")
    Progress(job.folder)(9, 9, "the end", loss=0.5)
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.done)
    assert callbacks.progress == [JobProgress(done=9, total=9, message="the end", loss=0.5)]


def test_progress_that_cannot_be_written_stops_no_work(tmp_path: Path) -> None:
    Progress(tmp_path / "gone")(1, 2, "half")


async def test_a_report_that_a_power_cut_has_emptied_holds_up_no_job(folder: Path, environment: dict[str, str]) -> None:
    """The watcher could not read it, each time before it would start the job's process."""
    callbacks = Callbacks()
    watcher = Jobs(folder, "job_for_test", environment)
    watcher.submit("a", Spec(kind="quick"))
    (folder / "a" / "progress.json").write_bytes(b"")
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.done)


@pytest.mark.parametrize("error", [DependencyUnavailable("Kafka is away"), RuntimeError("a bug")])
async def test_a_result_is_announced_until_its_callback_succeeds(
    folder: Path, environment: dict[str, str], error: Exception
) -> None:
    callbacks = Callbacks()
    callbacks.errors = [error]
    watcher = Jobs(folder, "job_for_test", environment)
    watcher.submit("a", Spec(kind="quick"))
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.done)
    assert not callbacks.errors


def test_a_slot_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from shared.jobs import lease\n"
    code += "with lease(Path(sys.argv[1]), 1): print('held', flush=True); time.sleep(3600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    started = time.monotonic()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with lease(tmp_path, 1):
        assert time.monotonic() - started < PATIENCE_SECONDS


def test_a_job_that_waits_for_another_one_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, polls = itertools.count(0.0, 60.0), iter(range(9))
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: next(polls)))
    reports: list[str] = []

    class Waiting(Progress):
        def __call__(self, done: float, total: float, message: str = "") -> None:
            reports.append(message)
            if len(reports) == 4:
                held.close()

    held = contextlib.ExitStack()
    held.enter_context(lease(tmp_path / "slots", 1))
    with lease(tmp_path / "slots", 1, Waiting(tmp_path)):
        assert reports == [f"waiting for {minutes} min until another job ends" for minutes in (1, 2, 3, 4)]
