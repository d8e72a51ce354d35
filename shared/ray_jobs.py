"""Starts the processes of jobs on a Ray cluster, whose machines share the home folder, with its locks.

Ray ends a task with the service that asked for it: the service's next start runs the job again, which goes on from
where it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from shared.jobs import JobProcess


class RayStarter:
    """Implements `shared.jobs.JobStarter`: a task for each process, that holds so many GPUs and cores meanwhile."""

    def __init__(self, address: str, gpus: int, cores: int) -> None:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        self._run = ray.remote(num_gpus=gpus, num_cpus=cores, max_retries=0)(_run)

    def __call__(self, module: str, folder: Path, environment: Mapping[str, str]) -> JobProcess:
        return _Task(self._run.remote(module, str(folder), dict(environment)))


class _Task:
    """A task as the process that it runs."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def poll(self) -> int | None:
        return 0 if ray.wait([self._reference], timeout=0)[0] else None

    def send_signal(self, number: int) -> None:
        """Do nothing: the task reads in the job's folder that the job was ended. An interrupt by Ray could come at any
        place of its code, also between a process and what would kill it."""


def _run(module: str, folder: str, environment: dict[str, str]) -> None:
    """Run the process on the machine that Ray has chosen; how it ended is in the job's folder."""
    argv, variables = [sys.executable, "-m", module, folder], {**os.environ, **environment}
    with (
        (Path(folder) / "log.txt").open("ab") as log,
        subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=variables) as process,
    ):
        try:  # Of a job that still runs `announced` says that it was ended (`Jobs.end`).
            while process.poll() is None and not (Path(folder) / "announced").exists():
                time.sleep(0.2)
        finally:
            process.kill()
