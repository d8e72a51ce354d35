"""Keeps one part alive: `python -m deploy.devstack.supervision.supervisor RECORD`.

Started by `stack.py`, detached, one per part.

RECORD is the JSON file that says what to run (`launch`). The supervisor adds who it is and who its child is, so that
`down` can stop just these. A child that ends unasked is started again after a pause that doubles; one that keeps
ending early is given up as `failed`, with its log to tell why. SIGTERM stops the child, then the supervisor.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO, Any

from deploy.devstack.supervision.processes import Identity, stop

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A child that ran this long was well: the next crash is a first one again."""
POLL_SECONDS = 0.2
GIVE_UP_AFTER = 6
"""Early ends in a row before the part is called failed."""


class Supervisor:
    """One child, restarted when it crashes. `run` blocks until the child is stopped or given up."""

    def __init__(self, record: Path) -> None:
        self._path = record
        self._record: dict[str, Any] = json.loads(record.read_text())
        self._launch: dict[str, Any] = self._record["launch"]
        self._stopping = False

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: only remember (a lock here could be one that the interrupted code holds); the loop acts."""
        self._stopping = True

    def run(self) -> None:
        self._write(supervisor=vars(Identity.of(os.getpid())), state="starting", restarts=0)
        early, restarts = 0, 0
        while not self._stopping:
            began = time.monotonic()
            code = self._run_once()
            if self._stopping:
                break
            early = 1 if time.monotonic() - began > STEADY_SECONDS else early + 1
            restarts += 1
            if early >= GIVE_UP_AFTER:
                self._write(child=None, state="failed", last_exit=code)
                return
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (early - 1))
            self._write(child=None, state="restarting", restarts=restarts, last_exit=code)
            self._pause(pause)
        self._write(child=None, state="stopped")

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._stopping:
            time.sleep(POLL_SECONDS)

    def _run_once(self) -> int:
        """Start the child and wait for its end, or for the order to stop it. Returns its exit code."""
        with Path(self._record["log"]).open("ab", buffering=0) as log:
            try:
                child = self._start(log)
            except OSError as error:
                log.write(f"supervisor: cannot start {self._launch['argv'][0]}: {error}\n".encode())
                return 127
            identity = Identity.of(child.pid)
            self._write(child=vars(identity), state="running", since=time.time())
            while child.poll() is None and not self._stopping:
                time.sleep(POLL_SECONDS)
            if child.poll() is None:
                reaper = threading.Thread(target=child.wait, daemon=True)
                reaper.start()
                stop(identity, self._launch["stop_signal"], self._launch["grace_seconds"])
                reaper.join(5.0)
            else:
                stop(identity, signal.SIGKILL, 0.0)  # what the child left running in its group
                log.write(f"supervisor: {self._record['part']} ended with {child.returncode}\n".encode())
            return child.returncode if child.returncode is not None else -signal.SIGKILL

    def _start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        drop = {"user": self._launch["user"], "extra_groups": []} if self._launch["user"] else {}
        if drop:
            drop["group"] = group_of(self._launch["user"])
        return subprocess.Popen(
            self._launch["argv"],
            env={**os.environ, **self._launch["env"]},
            cwd=self._launch["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **drop,
        )

    def _write(self, **changes: Any) -> None:
        self._record.update(changes)
        write_private(self._path, json.dumps(self._record, indent=1))


def group_of(user: str) -> int:
    """A user's primary group id."""
    import pwd

    return pwd.getpwnam(user).pw_gid


def write_private(path: Path, text: str) -> None:
    """Replace a file at once; readable by its owner only (it holds passwords)."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)


def main() -> None:
    """Entry point."""
    supervisor = Supervisor(Path(sys.argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.ask_to_stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    supervisor.run()


if __name__ == "__main__":
    main()
