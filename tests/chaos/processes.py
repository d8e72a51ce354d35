"""Processes that the harness restarts itself, because it must distinguish its own kills from crashes.

`deploy.devstack.supervision.supervisor` gives up on a part after six early exits in a row, which is right for a person
and wrong here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.devstack.part import Launch
from deploy.devstack.supervision.processes import die_with_parent, run_as

TOKEN = "RATCHET_CHAOS_RUN"
"""Set in the environment of every process of a run and its children, so that `sweep` kills these and no others."""
_EARLY_SECONDS, _FOLLOW_SECONDS = 5.0, 10.0


@dataclass
class Program:
    """A process that is restarted when it ends. `crashes`: how often it ended by itself, by exit code."""

    name: str
    launch: Launch
    log: Path
    env: Mapping[str, str]
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    crashes: dict[int, int] = field(default_factory=dict)
    _stopped: bool = False
    _ended_by_us: bool = False
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run_forever(self) -> None:
        """Start it, wait for its end and start it again, until cancelled."""
        while True:
            while self._stopped:
                self._wake.clear()
                await self._wake.wait()
            started = time.monotonic()
            process = await self._start()
            code = await process.wait()
            if not self._ended_by_us:
                self.crashes[code] = self.crashes.get(code, 0) + 1
                with self.log.open("a") as log:
                    log.write(f"chaos: {self.name} crashed with exit code {code}\n")
            early = not self._ended_by_us and time.monotonic() - started < _EARLY_SECONDS
            await asyncio.sleep(1.0 if early else 0.1)

    async def _start(self) -> asyncio.subprocess.Process:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.launch.argv, env={**self.env, **self.launch.env}, cwd=self.launch.cwd,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=die_with_parent, **run_as(self.launch.user),
            )  # fmt: skip
        self.starts += 1
        self._ended_by_us = False
        return self.process

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def children(self, word: str) -> list[psutil.Process]:
        """Return its child processes whose command line has this word."""
        if not self.running or self.process is None:
            return []
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if any(word in part for part in child.cmdline()):
                    found.append(child)
        return found

    def signal(self, number: int) -> None:
        """Send a signal to the process alone, if it runs, and none to its children, as a real kill does."""
        if self.running and self.process is not None:
            self._ended_by_us = self._ended_by_us or number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def kill(self, *, group: bool = False) -> None:
        """kill -9 it; `run_forever` restarts it. `group`: with its children, which would live on without it."""
        self.signal(signal.SIGKILL)
        if group:
            self.kill_group()
        if self.process is not None:
            await self.process.wait()

    def kill_group(self) -> None:
        """kill -9 what is left of its group. A child that has renamed itself has lost the run's token."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    async def kill_child(self, word: str) -> bool:
        """kill -9 its child with this word in its command line, and wait for its own end, which must follow.

        Returns False if there is no such child. Raises TimeoutError if it continues without its child.
        """
        children = self.children(word)
        if not children or self.process is None:
            return False
        self._ended_by_us = True
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        async with asyncio.timeout(_FOLLOW_SECONDS):
            await self.process.wait()
        return True

    async def stop(self) -> None:
        """Stop it with its stop signal until `resume`."""
        self._stopped = True
        self.signal(self.launch.stop_signal)
        if self.process is not None:
            try:
                async with asyncio.timeout(self.launch.grace_seconds):
                    await self.process.wait()
            except TimeoutError:
                await self.kill()

    def resume(self) -> None:
        """Start it again after `stop`."""
        self._stopped = False
        self._wake.set()


class Programs:
    """All programs of a run."""

    def __init__(self, env: Mapping[str, str], logs: Path, token: str) -> None:
        self._env = {**env, TOKEN: token}
        self._logs = logs
        self._token = token
        self._tasks: list[asyncio.Task[None]] = []
        self.by_name: dict[str, Program] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, launch: Launch, env: Mapping[str, str] | None = None) -> Program:
        """Start a program, and restart it whenever it ends."""
        program = Program(name, launch, self._logs / f"{name}.log", {**self._env, **(env or {})})
        self.by_name[name] = program
        self._tasks.append(asyncio.create_task(program.run_forever(), name=f"run {name}"))
        return program

    def check(self) -> None:
        """Raise the error of a program that could not be started."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    async def close(self) -> None:
        """kill -9 every program and every process that it left behind."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for program in self.by_name.values():
            program.signal(signal.SIGKILL)
            program.kill_group()
        await asyncio.gather(*(p.process.wait() for p in self.by_name.values() if p.process is not None))
        await asyncio.to_thread(sweep, self._token)


def sweep(token: str) -> int:
    """Kill every process with this run's token in its environment; returns how many there were."""
    killed = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(TOKEN) == token:
                process.kill()
                killed += 1
    return killed
