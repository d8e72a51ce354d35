"""Jobs whose processes a real Ray of one machine starts."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import jobs
from shared.jobs import Job, Jobs, stop_running
from tests.unit.shared.test_jobs import Callbacks, Spec, environment, folder, short_pauses, starts, watched  # noqa: F401
from tests.waiting import until

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray with one core; it reports nothing to its makers."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def watcher(cluster: None, folder: Path, environment: dict[str, str]) -> Jobs:  # noqa: F811
    from shared.ray_jobs import RayStarter

    return Jobs(folder, "job_for_test", environment, RayStarter("auto", gpus=0, cores=1))


async def test_a_job_runs_on_ray_and_its_result_and_progress_are_announced(watcher: Jobs, folder: Path) -> None:  # noqa: F811
    callbacks = Callbacks()
    watcher.submit("a", Spec(kind="slow"))
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.progress)
        assert Job("a", folder / "a").running
        (folder / "a" / "go").touch()
        await until(lambda: callbacks.done)
    assert callbacks.done == [("a", b'{"value":"slow"}')]
    (pid,) = starts(folder, "a")
    assert pid != os.getpid()


async def test_a_job_that_is_killed_on_ray_is_started_again(watcher: Jobs, folder: Path) -> None:  # noqa: F811
    callbacks = Callbacks()
    watcher.submit("a", Spec(kind="slow"))
    async with watched(watcher, callbacks):
        await until(lambda: starts(folder, "a"))
        os.kill(starts(folder, "a")[0], signal.SIGKILL)
        (folder / "a" / "go").touch()
        await until(lambda: callbacks.done)
    assert len(starts(folder, "a")) == 2


async def test_a_job_that_waits_for_a_core_of_the_cluster_is_not_started_twice(watcher: Jobs, folder: Path) -> None:  # noqa: F811
    callbacks = Callbacks()
    for name in ("a", "b"):
        watcher.submit(name, Spec(kind="slow"))
    async with watched(watcher, callbacks):
        await until(lambda: starts(folder, "a") or starts(folder, "b"))
        (first,) = [name for name in ("a", "b") if starts(folder, name)]
        other = "b" if first == "a" else "a"
        for name in (first, other):
            (folder / name / "go").touch()
        await until(lambda: len(callbacks.done) == 2)
    assert [name for name, _ in callbacks.done] == [first, other]
    assert len(starts(folder, other)) == 1


@pytest.mark.parametrize("kind", ["slow", "deaf"])
async def test_a_job_of_a_cycle_that_is_ended_stops_on_ray(
    watcher: Jobs,
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(jobs, "_signal", lambda *_: False)  # As if its process was on another machine.
    callbacks = Callbacks()
    watcher.submit("a", Spec(kind=kind), "c1")
    async with watched(watcher, callbacks):
        await until(lambda: callbacks.progress)
        (pid,) = starts(folder, "a")
        assert [job.name for job in await watcher.end("c1", lambda job: True)] == ["a"]
        await until(lambda: not Path(f"/proc/{pid}").exists())
    assert callbacks.done == [] and len(starts(folder, "a")) == 1


def test_a_process_on_another_machine_is_not_mistaken_for_one_of_this(tmp_path: Path) -> None:
    """Its number may be that of any process here."""
    job = tmp_path / "a"
    job.mkdir()
    with subprocess.Popen(["sleep", "60"]) as bystander, (job / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{bystander.pid} another-machine")
        lock.flush()
        assert stop_running(tmp_path) == []
        assert bystander.poll() is None
        bystander.kill()
