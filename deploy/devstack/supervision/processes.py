"""Processes by identity: a pid together with the moment it started, so that a reused pid is never taken for ours.

Nothing here looks a process up by name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

import psutil

CLOCK_SLACK_SECONDS = 0.05
"""psutil derives the start time from boot time plus ticks; two readings agree to a tick (10 ms)."""


@dataclass(frozen=True)
class Identity:
    """A process, this one and no later one with the same pid. `started`: Unix time in seconds."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Raises psutil.NoSuchProcess when it is gone."""
        return cls(pid, psutil.Process(pid).create_time())

    def alive(self) -> bool:
        """True while that very process runs (a zombie does not)."""
        try:
            process = psutil.Process(self.pid)
            same = bool(abs(process.create_time() - self.started) <= CLOCK_SLACK_SECONDS)
            return same and bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def signal(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def wait_gone(self, seconds: float) -> bool:
        """True if it ended within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def stop(process: Identity, stop_signal: int, grace_seconds: float) -> None:
    """Ask a process that leads its own group to end; after the grace, end the whole group."""
    group = process.pid
    if process.alive():
        process.signal(stop_signal)
        process.wait_gone(grace_seconds)
    if process.alive() or _group_left(group):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        process.wait_gone(5.0)


def _group_left(group: int) -> bool:
    """Whether members of the group outlived its leader. A pid is not reused while a group of that number exists."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def memory_bytes(process: Identity) -> int:
    """Memory of a process and its descendants; shared pages counted once (PSS) where the system says so."""
    if not process.alive():
        return 0
    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(process.pid)
        for member in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                info = member.memory_full_info()
                total += int(getattr(info, "pss", 0) or info.rss)
    return total
