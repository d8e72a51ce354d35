"""Bringing parts up: side by side, each as soon as what it needs is healthy, from nothing to answering."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from deploy.devstack.catalog import part_named
from deploy.devstack.config import HOST, StackConfig
from deploy.devstack.errors import PartError, StackError
from deploy.devstack.part import Part, tail
from deploy.devstack.supervision import records

Progress = Callable[[str, str, str], None]
"""Called with part, stage (installing, waiting, starting, ready, external, failed, …) and a few words; any thread."""

POLL_SECONDS = 0.3
STEADY_SECONDS = 4.0
"""A part without a port cannot be asked: it is well when it has run this long."""
HOPELESS_AFTER = 3
"""Crashes before the first answer that make `up` give up, and stop the part: what never ran will not heal itself."""


def side_by_side(parts: Sequence[Part], action: Callable[[Part], None], tell: Progress, cancel: Event) -> None:
    """Run `action` on every part in threads; collects all failures before it raises StackError.

    Ctrl-C sets `cancel`, so that the threads end soon.
    """
    failures: dict[str, PartError] = {}

    def guarded(part: Part) -> None:
        try:
            action(part)
        except PartError as error:
            failures[part.name] = error
            tell(part.name, "failed", error.reason.splitlines()[0])

    with ThreadPoolExecutor(max(1, len(parts))) as pool:
        try:
            list(pool.map(guarded, parts))
        except BaseException:
            cancel.set()
            raise
    if failures:
        raise StackError(failures)


class Ascent:
    """One `up`. `bring_up` is called once per part, each in its own thread."""

    def __init__(self, config: StackConfig, parts: Sequence[Part], installing: bool, tell: Progress) -> None:
        self._config, self._installing, self._tell = config, installing, tell
        self._done = {part.name: Event() for part in parts}
        self._broken: set[str] = set()
        self.cancel = Event()

    def bring_up(self, part: Part) -> None:
        """From whatever is there to healthy. Raises PartError."""
        try:
            if part.name in self._config.externals:
                self._check_external(part)
            elif self._healthy(part):
                self._tell(part.name, "ready", f"was running, {part.address(self._config)}")
            else:
                self._install(part)
                self._await_needs(part)
                self._start(part)
        except BaseException:
            self._broken.add(part.name)
            raise
        finally:
            self._done[part.name].set()

    def _check_external(self, part: Part) -> None:
        address = part.address(self._config)
        self._tell(part.name, "checking", f"your own, at {address}")
        part.environment(self._config)  # complains where its tokens are missing
        if trouble := part.probe(self._config):
            variable = f"RATCHET_{part.name.upper()}"
            raise PartError(trouble, f"{variable} names your own: start it, or unset {variable} to get one here.")
        self._tell(part.name, "external", address)

    def _healthy(self, part: Part) -> bool:
        record = records.read(self._config, part.name)
        return bool(record and record.supervised and record.running and part.probe(self._config) is None)

    def _install(self, part: Part) -> None:
        if self._installing:
            part.install(self._config, lambda words: self._tell(part.name, "installing", words))
        elif not part.installed(self._config):
            raise PartError(f"{part.name} is not installed", f"ratchet install {part.name}")

    def _await_needs(self, part: Part) -> None:
        for need in part.needs:
            if need in self._done:
                if not self._done[need].is_set():
                    self._tell(part.name, "waiting", f"for {need}")
                while not self._done[need].wait(POLL_SECONDS):
                    self._check_cancelled()
                trouble = "it did not come up" if need in self._broken else None
            else:
                trouble = part_named(need).probe(self._config)
            if trouble:
                raise PartError(f"{part.name} needs {need}: {trouble}", f"ratchet up --only {need},{part.name}")

    def _start(self, part: Part) -> None:
        """Start it (what is left of an earlier one is stopped first) and wait until it answers."""
        config, began = self._config, time.monotonic()
        self._check_cancelled()
        self._tell(part.name, "starting", "")
        before = records.read(config, part.name)
        if before and not (before.supervised and before.running):
            records.stop_part(config, before)
            before = None
        if before is None:
            self._check_ports(part)
            launch, environment = part.launch(config), part.environment(config)
            records.start(config, part.name, launch, part.address(config), environment)
        self._wait_healthy(part)
        part.finish(config, lambda words: self._tell(part.name, "starting", words))
        self._tell(part.name, "ready", f"{part.address(config)} ({time.monotonic() - began:.0f} s)")

    def _check_ports(self, part: Part) -> None:
        for name in part.ports:
            port = self._config.ports[name]
            if not port_free(port):
                raise PartError(
                    f"port {port} is taken by something that this home did not start",
                    f"Set RATCHET_{name.upper()}_PORT to a free port, or stop what listens there (ss -ltnp).",
                )

    def _wait_healthy(self, part: Part) -> None:
        config, trouble = self._config, "it did not start"
        deadline = time.monotonic() + part.start_seconds
        while time.monotonic() < deadline:
            self._check_cancelled()
            record = records.read(config, part.name)
            if record is None or record.state == "failed" or record.restarts >= HOPELESS_AFTER:
                break
            if record.running:
                answer = part.probe(config)
                if answer is None and (part.ports or record.running_seconds >= STEADY_SECONDS):
                    return
                trouble = answer or "it ended soon after its start"
            self._tell(part.name, "starting", f"ended {record.restarts}×, again" if record.restarts else "")
            time.sleep(POLL_SECONDS)
        if record := records.read(config, part.name):
            records.stop_part(config, record)
        log = config.logs / f"{part.name}.log"
        way_out = f"Mend what the log says, then: ratchet up --only {part.name}"
        raise PartError(f"{trouble}\nThe end of {log}:\n{tail(log)}", way_out)

    def _check_cancelled(self) -> None:
        if self.cancel.is_set():
            raise PartError("interrupted", "ratchet up goes on from here; ratchet down stops what runs")


def port_free(port: int) -> bool:
    """Whether we could listen there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError:
            return False
    return True
