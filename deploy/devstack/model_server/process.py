"""One model's server as a process: started, watched, and stopped with all that it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx

from deploy.devstack.config import HOST
from deploy.devstack.part import Launch, tail
from deploy.devstack.ports import take_ports
from deploy.devstack.supervision.processes import ProcessIdentity, die_with_parent, stop
from shared.errors import DependencyUnavailable

Launcher = Callable[[str, Path, int], Launch]
"""Returns how to serve a model: takes its name, its folder and a port."""
_POLL_SECONDS = 0.2


class ServedModel:
    """The server of one model. `requests`: how many it answers, or is to answer. `used`: when the last one ended."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.url = name, ""
        self.requests, self.used = 0, time.monotonic()
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, launcher: Launcher, folder: Path, seconds: float) -> None:
        """Start it, and wait until it answers. Raises DependencyUnavailable with the end of its log."""
        port, *_ = take_ports(1)
        self.url = f"http://{HOST}:{port}"
        self._spawn(launcher(self.name, folder, port))
        deadline = time.monotonic() + seconds
        async with httpx.AsyncClient(timeout=5.0) as client:
            while not self.ended and time.monotonic() < deadline:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{self.url}/health")).is_success:
                        return
                await asyncio.sleep(_POLL_SECONDS)
        raise self.failure("did not start" if self.ended else f"does not answer after {seconds:.0f} s")

    def _spawn(self, launch: Launch) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            # vLLM's engine is a process of its own, which outlives an API server that is killed.
            self._process = subprocess.Popen(
                launch.argv, env={**os.environ, **launch.env}, cwd=launch.cwd, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )  # fmt: skip
        self._stop = partial(stop, ProcessIdentity.of(self._process.pid), launch.stop_signal, launch.grace_seconds)

    @property
    def ended(self) -> bool:
        """Whether it has exited, or was stopped."""
        return self._process is None or self._process.poll() is not None

    def failure(self, what: str) -> DependencyUnavailable:
        """Return the error that says what happened, with the last lines of its log."""
        return DependencyUnavailable(
            f"the model {self.name} {what}. The end of {self._log}:\n{tail(self._log)}", "Fix what the log reports."
        )

    async def stop(self) -> None:
        """End it, and what it left running if it has ended."""
        if self._process is not None:
            process, self._process = self._process, None
            await asyncio.to_thread(self._stop)
            process.poll()
