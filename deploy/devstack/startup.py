"""Starts parts in parallel: each is installed, and starts as soon as the parts that it needs are healthy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from deploy.devstack.catalog import part_named
from deploy.devstack.config import StackConfig
from deploy.devstack.errors import PartError, StackError
from deploy.devstack.part import StackPart, tail
from deploy.devstack.ports import port_is_free
from deploy.devstack.supervision import records

Progress = Callable[[str, str, str], None]
"""Callback for progress: part, stage (installing, waiting, starting, ready, external, failed, …), details.

It is called from any thread.
"""

POLL_SECONDS = 0.3
MAX_CRASHES = 3
"""A part that crashes this often before its first answer is stopped and reported as failed."""


def run_in_parallel(
    parts: Sequence[StackPart], action: Callable[[StackPart], None], report: Progress, cancel: Event
) -> None:
    """Run `action` on every part, each in its own thread. Raises StackError with all failures when all have ended.

    Ctrl-C sets `cancel`, so that the threads end soon.
    """
    failures: dict[str, PartError] = {}

    def run_guarded(part: StackPart) -> None:
        try:
            action(part)
        except PartError as error:
            failures[part.name] = error
            report(part.name, "failed", error.reason.splitlines()[0])

    with ThreadPoolExecutor(max(1, len(parts))) as pool:
        try:
            list(pool.map(run_guarded, parts))
        except BaseException:
            cancel.set()
            raise
    if failures:
        raise StackError(failures)


class StackStartup:
    """The state of one `ratchet up`. Call `bring_up` once per part, each in its own thread."""

    def __init__(self, config: StackConfig, parts: Sequence[StackPart], report: Progress) -> None:
        self._config, self._report = config, report
        self._finished = {part.name: Event() for part in parts}
        self._failed: set[str] = set()
        self.cancel = Event()

    def bring_up(self, part: StackPart) -> None:
        """Install and start a part, and wait until it is healthy. Raises PartError."""
        try:
            if part.name in self._config.externals:
                self._check_external(part)
            elif self._is_healthy(part):
                self._report(part.name, "ready", f"was running, {part.address(self._config)}")
            else:
                if records.read(self._config, part.name) is None:
                    self._check_ports(part)  # Before an installation of some minutes.
                part.install(self._config, lambda words: self._report(part.name, "installing", words))
                self._wait_for_needs(part)
                self._start(part)
        except BaseException:
            self._failed.add(part.name)
            raise
        finally:
            self._finished[part.name].set()

    def _check_external(self, part: StackPart) -> None:
        address = part.address(self._config)
        self._report(part.name, "checking", f"your own, at {address}")
        part.environment(self._config)  # Raises PartError if its tokens are missing.
        if problem := part.probe(self._config):
            variable = f"RATCHET_{part.name.upper()}"
            raise PartError(problem, f"{variable} names your own server: start it, or unset {variable} to get one.")
        self._report(part.name, "external", address)

    def _is_healthy(self, part: StackPart) -> bool:
        record = records.read(self._config, part.name)
        return bool(record and record.supervised and record.running and part.probe(self._config) is None)

    def _wait_for_needs(self, part: StackPart) -> None:
        for need in part.needs(self._config):
            if need in self._finished:
                if not self._finished[need].is_set():
                    self._report(part.name, "waiting", f"for {need}")
                while not self._finished[need].wait(POLL_SECONDS):
                    self._check_cancelled()
                problem = "it did not start" if need in self._failed else None
            else:
                problem = part_named(need).probe(self._config)
            if problem:
                raise PartError(f"{part.name} needs {need}: {problem}", f"ratchet up --only {need},{part.name}")

    def _start(self, part: StackPart) -> None:
        """Stop what is left of an earlier run, start the part and wait until it answers."""
        config, began = self._config, time.monotonic()
        self._check_cancelled()
        self._report(part.name, "starting", "")
        earlier = records.read(config, part.name)
        if earlier and not (earlier.supervised and earlier.running):
            records.stop_part(config, earlier)
            earlier = None
        if earlier is None:
            self._check_ports(part)
            launch, environment = part.launch(config), part.environment(config)
            records.start_part(config, part.name, launch, part.address(config), environment)
        self._wait_until_healthy(part)
        part.finish(config, lambda words: self._report(part.name, "starting", words))
        self._report(part.name, "ready", f"{part.address(config)} ({time.monotonic() - began:.0f} s)")

    def _check_ports(self, part: StackPart) -> None:
        for name in part.ports:
            port, host = self._config.ports[name], self._config.host(name)
            try:
                free = port_is_free(port, host)
            except OSError as error:
                variable = f"RATCHET_{name.upper()}_HOST"
                way_out = f"Set {variable} to an address of this machine, or to 0.0.0.0: all of them."
                raise PartError(f"nothing can listen at {variable}={host}: {error.strerror}", way_out) from error
            if not free:
                raise PartError(
                    f"address already in use: port {port}, by a process that this home did not start",
                    f"Set RATCHET_{name.upper()}_PORT to a free port, or stop what listens there (ss -ltnp); if it is "
                    "another home's stack that you mean, set RATCHET_HOME to that home.",
                )

    def _wait_until_healthy(self, part: StackPart) -> None:
        config, problem = self._config, "it did not start"
        deadline = time.monotonic() + part.start_timeout_seconds
        while time.monotonic() < deadline:
            self._check_cancelled()
            record = records.read(config, part.name)
            if record is None or record.state == "failed" or record.restarts >= MAX_CRASHES:
                break
            if record.running:
                failure = part.probe(config)
                if failure is None:
                    return
                problem = failure
            self._report(part.name, "starting", f"exited {record.restarts}×, restarting" if record.restarts else "")
            time.sleep(POLL_SECONDS)
        if record := records.read(config, part.name):
            records.stop_part(config, record)
        log = config.logs / f"{part.name}.log"
        way_out = f"Fix what the log reports, then: ratchet up --only {part.name}"
        raise PartError(f"{problem}\nThe end of {log}:\n{tail(log)}", way_out)

    def _check_cancelled(self) -> None:
        if self.cancel.is_set():
            raise PartError("interrupted", "ratchet up continues from here; ratchet down stops what runs")
