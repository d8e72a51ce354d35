"""Processes identified by pid and start time, so that a reused pid is never taken for the process that had it.

Nothing here looks a process up by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_PR_SET_PDEATHSIG = 1
_ZOMBIE, _DEAD = b"Z", b"X"
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, and no later one with the same pid.

    `started`: the kernel's ticks from the boot to its start, since the system's clock may be set while it runs. `boot`:
    which boot that is.
    """

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Return the identity of the process that has this pid now. Raises OSError if none has."""
        return cls(pid, _state(pid)[1], _boot())

    def alive(self) -> bool:
        """Return True while this process runs; a zombie does not."""
        try:
            state, started = _state(self.pid)
        except OSError:
            return False
        return (started, _boot()) == (self.started, self.boot) and state not in (_ZOMBIE, _DEAD)

    def signal(self, number: int) -> None:
        """Send a signal if the process still runs."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def wait_gone(self, seconds: float) -> bool:
        """Wait for the process to end. Returns True if it ended within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def _state(pid: int) -> tuple[bytes, int]:
    """Return a process's state and when it was started, in ticks (proc_pid_stat(5)). Raises OSError."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    fields = stat.rpartition(b")")[2].split()  # Its name, before, may have spaces and brackets in it.
    return fields[0], int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def stop(process: ProcessIdentity, stop_signal: int, grace_seconds: float) -> None:
    """Signal a process that leads its own group; kill the whole group after the grace period."""
    group = process.pid
    if process.alive():
        process.signal(stop_signal)
        process.wait_gone(grace_seconds)
    if process.alive() or _group_exists(group):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        process.wait_gone(5.0)


def _group_exists(group: int) -> bool:
    """Return True if a member of the group outlived its leader. While one does, the leader's pid is not reused."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def run_as(user: str | None) -> dict[str, Any]:
    """Return the arguments of `subprocess.Popen` that run a process as `user`; None: as the current user."""
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """To be run in a child before its program (`preexec_fn`): have it killed when its parent dies, however it dies.

    `number`: the signal; SIGTERM for a program that must end others of its own.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, number)


def memory_bytes(process: ProcessIdentity) -> int:
    """Return the memory of a process and its descendants; shared pages count once (PSS) where the system reports it."""
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
